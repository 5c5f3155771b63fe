#pragma once

#include "core/params.h"

namespace fa2::sm80 {

// The append kernel's argument.
struct AppendArgs {
  AppendParams problem;
  int32_t rows;  // most that a sequence appends or rotates
};

}  // namespace fa2::sm80
