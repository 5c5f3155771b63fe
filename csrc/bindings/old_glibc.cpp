// Lets a module that was linked against a newer glibc run with the one of manylinux_2_28: part of
// modules with FLASH_ATTN2_PORTABLE (cmake/Portable.cmake) alone.
//
// A linker takes the newest version that its glibc has of a function. What follows takes an older
// one of the same meaning: with --wrap=f the linker sends every call of f, those of libraries it
// links in included, to __wrap_f here, which calls the version that x86-64 has had from the start.
// Functions that nothing calls are left out again (--gc-sections).

#include <features.h>

#if !defined(__x86_64__) || !defined(__GLIBC__)
#error "FLASH_ATTN2_PORTABLE knows the versions of symbols of glibc on x86-64 only"
#endif

extern "C" {

// libstdc++ reads it to leave out atomic operations (a glibc of 2.32 sets it); in a process with
// Python and OpenMP there is nothing to win.
char __libc_single_threaded = 0;

#define FA2_OLD(result, name, parameters, arguments)           \
  result fa2_old_##name parameters;                            \
  __asm__(".symver fa2_old_" #name ", " #name "@GLIBC_2.2.5"); \
  result __wrap_##name parameters { return fa2_old_##name arguments; }

// 2.29: without the wrappers that set errno.
FA2_OLD(double, exp2, (double x), (x))
FA2_OLD(double, log, (double x), (x))
FA2_OLD(double, pow, (double x, double y), (x, y))
// 2.34: libpthread has become a part of libc.
FA2_OLD(int, pthread_once, (int* control, void (*routine)()), (control, routine))

}  // extern "C"
