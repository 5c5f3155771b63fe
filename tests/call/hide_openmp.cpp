// Loaded with LD_AUDIT: the dynamic linker finds no OpenMP runtime but the one of torch, as on a
// system that has none.

#include <link.h>

#include <cstring>

extern "C" {

unsigned la_version(unsigned version) { return version; }

// Asked for every name that is looked for, and for every place where it may be.
char* la_objsearch(char const* name, uintptr_t* /*cookie*/, unsigned flag) {
  bool const of_the_system = (flag & (LA_SER_CONFIG | LA_SER_DEFAULT)) != 0;
  return of_the_system && std::strstr(name, "libgomp") ? nullptr : const_cast<char*>(name);
}

}  // extern "C"
