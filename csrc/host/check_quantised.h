#pragma once

// What is wrong with a cache of 8 bits, in every family.

#include "core/params.h"
#include "host/error.h"

namespace fa2 {

// `keys`: whether a call reads or writes any.
inline void check_quantised(QuantisedKV const& cache, bool keys) {
  FA2_CHECK(cache.type >= CodeType::kNone && cache.type <= CodeType::kInt8, "code type {}",
            static_cast<int>(cache.type));
  bool const given = cache.k.factors.data != nullptr && cache.v.factors.data != nullptr;
  FA2_CHECK(cache.type == CodeType::kNone || given || !keys, "a cache of {} without factors",
            to_string(cache.type));
}

}  // namespace fa2
