#pragma once

// Tensor maps, made on the host. Nothing links with the driver.

#include "core/params.h"
#include "sm90/forward/args.h"

namespace fa2::sm90 {

// Whether the driver can make them.
bool makes_tensor_maps();

// Rows of one kind of a problem's tensors.
struct MappedRows {
  DType dtype;
  int32_t batch;
  int32_t heads;
  int32_t head_dim;
  SeqLens seqs;
};

// What one copy brings: kBoxCols columns (tile/wgmma.h) of some heads of some rows.
struct Box {
  int32_t cols;
  int32_t heads;
  int32_t rows;
};

// Of a tensor that has rows. Throws Error where the driver refuses.
TensorMap make_tensor_map(TensorRef const& tensor, MappedRows const& rows, Box const& box);

}  // namespace fa2::sm90
