#pragma once

#include "core/params.h"

namespace fa2::cpu {

// The last defence behind the checks of Python, which name arguments: a problem that nobody could
// mean raises fa2::Error, before any of its memory is touched.
void check_problem(FwdParams const& params, int num_threads);
void check_problem(BwdParams const& params, int num_threads);
void check_problem(BiasBwdParams const& params, int num_threads);
void check_problem(AppendParams const& params, int num_threads);

}  // namespace fa2::cpu
