#include "sm90/registry.h"

#include <string>

#include "host/error.h"

namespace fa2::sm90 {

FwdInstance const& find_forward(KernelKey const& key) {
  for (FwdInstance const* instance : instances<FwdInstance>()) {
    if (instance->key == key) return *instance;
  }
  std::string built;  // only now: every launch looks here
  for (FwdInstance const* instance : instances<FwdInstance>()) {
    built += "\n  " + to_string(instance->key);
  }
  throw Error(message("no kernel for {}; built are:{}", to_string(key), built));
}

}  // namespace fa2::sm90
