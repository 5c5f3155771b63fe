// Lets a module that was linked against a newer glibc run with the one of manylinux_2_28: part of
// modules with FLASH_ATTN2_PORTABLE (cmake/Portable.cmake) alone.
//
// A linker takes the newest version that its glibc has of a function. What follows takes an older
// one of the same meaning: with --wrap=f the linker sends every call of f, those of libraries it
// links in included, to __wrap_f here, which goes on to the version that x86-64 has had from the
// start. It jumps: the caller is what some functions (dlopen, dlsym) go by. Functions that nothing
// calls are left out again (--gc-sections).

#include <features.h>

#if !defined(__x86_64__) || !defined(__GLIBC__)
#error "FLASH_ATTN2_PORTABLE knows the versions of symbols of glibc on x86-64 only"
#endif

// libstdc++ reads it to leave out atomic operations (a glibc of 2.32 sets it); in a process with
// Python and OpenMP there is nothing to win.
extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0;

// clang-format off
#define FA2_OLD_VERSION(name, version)                          \
  __asm__(".symver fa2_old_" #name "," #name "@" version ";"    \
          ".pushsection .text.__wrap_" #name ",\"ax\",@progbits;" \
          ".globl __wrap_" #name "; .hidden __wrap_" #name ";"  \
          ".type __wrap_" #name ",@function;"                   \
          "__wrap_" #name ": endbr64;"                          \
          "jmp *fa2_old_" #name "@GOTPCREL(%rip);"              \
          ".size __wrap_" #name ",.-__wrap_" #name ";"          \
          ".popsection")
// clang-format on
#define FA2_OLD(name) FA2_OLD_VERSION(name, "GLIBC_2.2.5")

// One on each line: cmake/Portable.cmake reads their names here.

// New in 2.29: without the wrappers that set errno.
FA2_OLD(exp);
FA2_OLD(exp2);
FA2_OLD(log);
FA2_OLD(pow);

// New in 2.34, when libpthread, libdl and librt became parts of libc.
FA2_OLD(pthread_condattr_setpshared);
FA2_OLD(pthread_create);
FA2_OLD(pthread_detach);
FA2_OLD(pthread_getspecific);
FA2_OLD(pthread_join);
FA2_OLD(pthread_key_create);
FA2_OLD(pthread_key_delete);
FA2_OLD(pthread_kill);
FA2_OLD(pthread_mutex_trylock);
FA2_OLD(pthread_mutexattr_destroy);
FA2_OLD(pthread_mutexattr_init);
FA2_OLD(pthread_mutexattr_setpshared);
FA2_OLD(pthread_mutexattr_settype);
FA2_OLD(pthread_once);
FA2_OLD(pthread_rwlock_destroy);
FA2_OLD(pthread_rwlock_init);
FA2_OLD(pthread_rwlock_rdlock);
FA2_OLD(pthread_rwlock_timedrdlock);
FA2_OLD(pthread_rwlock_timedwrlock);
FA2_OLD(pthread_rwlock_tryrdlock);
FA2_OLD(pthread_rwlock_trywrlock);
FA2_OLD(pthread_rwlock_unlock);
FA2_OLD(pthread_rwlock_wrlock);
FA2_OLD(pthread_rwlockattr_destroy);
FA2_OLD(pthread_rwlockattr_init);
FA2_OLD(pthread_rwlockattr_setpshared);
FA2_OLD(pthread_setspecific);
FA2_OLD(pthread_spin_destroy);
FA2_OLD(pthread_spin_init);
FA2_OLD(pthread_spin_lock);
FA2_OLD(pthread_spin_trylock);
FA2_OLD(pthread_spin_unlock);
FA2_OLD(sem_destroy);
FA2_OLD(sem_init);
FA2_OLD(sem_post);
FA2_OLD(sem_timedwait);
FA2_OLD(sem_trywait);
FA2_OLD(sem_wait);
FA2_OLD(dlclose);
FA2_OLD(dlerror);
FA2_OLD(dlopen);
FA2_OLD(dlsym);
FA2_OLD(dlvsym);
FA2_OLD(shm_open);
FA2_OLD(shm_unlink);
FA2_OLD_VERSION(dlmopen, "GLIBC_2.3.4");
