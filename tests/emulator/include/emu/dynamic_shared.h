#pragma once

// `extern __shared__ char name[];` inside a function names a variable of the enclosing namespace.
// Declaring it here first gives every such variable the one symbol that the emulator defines.
// A namespace or a name that is missing here shows up as an undefined symbol at link time.
// Only dynamic shared memory exists: a static __shared__ variable is out of bounds at run time.

#define EMU_DYNAMIC_SHARED(name) extern thread_local char name[] __asm__("emu_dynamic_shared")

EMU_DYNAMIC_SHARED(smem);

namespace fa2 {
EMU_DYNAMIC_SHARED(smem);
namespace sm80 {
EMU_DYNAMIC_SHARED(smem);
}
}  // namespace fa2
