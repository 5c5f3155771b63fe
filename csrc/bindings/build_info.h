#pragma once

#include <string>

namespace fa2::bindings {

// The compiler of the module's host code.
inline std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace fa2::bindings
