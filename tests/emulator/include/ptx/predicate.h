#pragma once

// A predicate register that some path reads before it writes it. Other registers hold poison until
// then; no value of a predicate is any, so reading it is an error.

#include "ptx/module.h"

namespace emu::ptx {

class Predicate {
 public:
  Predicate& operator=(bool value) {
    value_ = value;
    is_written_ = true;
    return *this;
  }
  operator bool() const { return value_; }
  bool is_written() const { return is_written_; }

 private:
  bool value_ = false;
  bool is_written_ = false;
};

[[noreturn]] void unwritten_predicate(Site const* site, char const* name);

inline void check_written(Site const* site, char const* name, Predicate const& predicate) {
  if (!predicate.is_written()) unwritten_predicate(site, name);
}

}  // namespace emu::ptx
