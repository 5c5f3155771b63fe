#pragma once

// Counts calls of the runtime API, for tests of what a launch costs the host.

namespace emu {

void count_call(char const* function);

}  // namespace emu
