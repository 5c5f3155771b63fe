#pragma once

// What the plans of both directions are made of.

#include <cstdint>
#include <string>

#include "core/params.h"
#include "sm90/tiles.h"

namespace fa2::sm90 {

// The narrowest bucket that holds such heads; a width of 0 where there is none.
Bucket bucket_of(int32_t head_dim, int32_t head_dim_v);

std::string to_string(Bucket const& bucket);

// What a problem asks of its scores.
Variant variant_of(FwdParams const& p);
char const* name_of(Variant variant);

// Whether boxes of a tensor's rows can be copied.
bool has_strides(TensorRef const& tensor, SeqLens const& seqs, int32_t heads);

}  // namespace fa2::sm90
