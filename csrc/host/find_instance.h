#pragma once

#include <span>
#include <string>

#include "host/error.h"

namespace fa2 {

// The kernel with such a key. Throws Error that says what was asked for and what is built.
template <class Instance, class Key>
Instance const& find_instance(std::span<Instance const* const> all, Key const& key) {
  for (Instance const* instance : all) {
    if (instance->key == key) return *instance;
  }
  std::string built;  // only now: every launch looks here
  for (Instance const* instance : all) built += "\n  " + to_string(instance->key);
  throw Error(message("no kernel for {}; built are:{}", to_string(key), built));
}

}  // namespace fa2
