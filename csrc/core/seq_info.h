#pragma once

// The only reader of cu_seqlens and seqused.

#include "core/macros.h"
#include "core/params.h"

namespace fa2 {

// Where sequence `batch` lies in its tensor.
struct SeqInfo {
  int64_t first_row;  // row of a packed tensor; 0 in a dense one
  int32_t length;
};

// Lengths on a device cannot be checked before the launch, so they are clamped here: whatever
// cu_seqlens and seqused hold, no row outside the tensor is ever addressed.
FA2_HD SeqInfo seq_info(SeqLens const& seqs, int32_t batch) {
  int64_t first = 0;
  int32_t length = seqs.max_seqlen;
  if (seqs.cu_seqlens != nullptr) {
    int64_t const begin = seqs.cu_seqlens[batch];
    int64_t const end = seqs.cu_seqlens[batch + 1];
    first = begin < 0 ? 0 : (begin < seqs.total ? begin : seqs.total);
    int64_t const last = end < first ? first : (end < seqs.total ? end : seqs.total);
    length = last - first < length ? int32_t(last - first) : length;
  }
  if (seqs.seqused != nullptr) {
    int32_t const used = seqs.seqused[batch];
    length = used < 0 ? 0 : (used < length ? used : length);
  }
  return {first, length};
}

// Address of (row 0, head) of sequence `batch`; rows follow at row_stride.
template <class Element>
FA2_HD Element* head_ptr(TensorRef const& t, int32_t batch, int64_t first_row, int32_t head) {
  return static_cast<Element*>(t.data) + batch * t.batch_stride + first_row * t.row_stride +
         head * t.head_stride;
}

// Index of (row 0, head) of sequence `batch` in FwdParams::lse.
FA2_HD int64_t lse_index(FwdParams const& p, int32_t batch, int64_t first_row, int32_t head) {
  return p.seqs_q.cu_seqlens != nullptr
             ? head * p.seqs_q.total + first_row
             : (int64_t(batch) * p.num_heads + head) * p.seqs_q.max_seqlen;
}

}  // namespace fa2
