#pragma once

// Keys that hold the values in their leading columns, as a latent cache does.

#include "core/params.h"

namespace fa2 {

// Whether values are the leading columns of keys, in the same memory: what is brought to the
// products for the one is there for the other. Between the heads there is no distance where there
// is one.
template <class Params>
bool keys_hold_values(Params const& p) {
  bool const heads = p.num_heads_kv == 1 || p.k.head_stride == p.v.head_stride;
  return p.k.data == p.v.data && p.k.batch_stride == p.v.batch_stride &&
         p.k.row_stride == p.v.row_stride && heads && p.head_dim_v <= p.head_dim;
}

}  // namespace fa2
