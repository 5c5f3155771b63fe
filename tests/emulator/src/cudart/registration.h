#pragma once

// The kernels and variables of the host code that nvcc compiles, by the addresses it knows them by.

#include <string>

#include "ptx/module.h"

namespace emu {

// The translated kernel behind a function of the host; nullptr for one that is none.
ptx::Entry const* registered_entry(void const* host_function);

// The variable of translated code behind one of the host.
ptx::Variable const* registered_variable(void const* host_variable);

}  // namespace emu
