#pragma once

// Writes new keys and values into a cache, and rotates them and queries: a CTA for each row.

#include <cute/config.hpp>

#include "core/append.h"
#include "core/rotary.h"
#include "core/seq_info.h"
#include "sm80/append/args.h"

namespace fa2::sm80 {

template <class Element>
struct AppendKernel {
  using Args = AppendArgs;
  static constexpr int kThreads = 128;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kSmemBytes = 0;

  CUTE_DEVICE void operator()(AppendArgs const& args, char*) const {
    AppendParams const& p = args.problem;
    int32_t const batch = blockIdx.x / args.rows, row = blockIdx.x % args.rows;
    int64_t const position = cached_rows(p.seqs_k, batch);
    if (p.new_k.data != nullptr) append_row(p, batch, row, position + row);
    if (p.q.data != nullptr) rotate_query(p, batch, row, p.q_advances ? position + row : position);
  }

 private:
  CUTE_DEVICE static void append_row(AppendParams const& p, int32_t batch, int32_t row,
                                     int64_t position) {
    SeqInfo const seq = seq_info(p.seqs_new, batch);
    if (row >= seq.length || !has_place(p, batch, position)) return;
    auto const row_of = [&](TensorRef const& t) {
      return static_cast<Element*>(t.data) + kv_row_offset(t, p.pages, batch, position);
    };
    int64_t const new_row = seq.first_row + row;
    Element* const to_k = row_of(p.k);
    for_entries(p.num_heads_kv, p.head_dim, [&](int head, int d) {
      auto const* const from = head_ptr<Element const>(p.new_k, batch, new_row, head);
      to_k[head * p.k.head_stride + d] = rotated(p.rotary, position, from, d);
    });
    if (p.new_v.data == nullptr) return;  // columns of the keys
    Element* const to_v = row_of(p.v);
    for_entries(p.num_heads_kv, p.head_dim_v, [&](int head, int d) {
      to_v[head * p.v.head_stride + d] = head_ptr<Element const>(p.new_v, batch, new_row, head)[d];
    });
  }

  CUTE_DEVICE static void rotate_query(AppendParams const& p, int32_t batch, int32_t row,
                                       int64_t position) {
    SeqInfo const seq = seq_info(p.seqs_q, batch);
    if (row >= seq.length) return;
    for_entries(p.num_heads, p.head_dim, [&](int head, int d) {
      auto const* const from = head_ptr<Element const>(p.q, batch, seq.first_row + row, head);
      head_ptr<Element>(p.rotated_q, batch, seq.first_row + row, head)[d] =
          rotated(p.rotary, position, from, d);
    });
  }

  template <class Body>
  CUTE_DEVICE static void for_entries(int heads, int head_dim, Body const& body) {
    for (int i = threadIdx.x; i < heads * head_dim; i += kThreads) body(i / head_dim, i % head_dim);
  }

  // Each product and each sum is rounded, as in every family.
  CUTE_DEVICE static Element rotated(Rotary const& rotary, int64_t position, Element const* head,
                                     int d) {
    if (rotary.cos == nullptr || d >= rotary.dim) return head[d];
    RotaryTerm const term = rotary_term(rotary, d);
    int64_t const at = int64_t(rotary_row(rotary, position)) * (rotary.dim / 2) + term.angle;
    float const cosine = entry(rotary, rotary.cos, at);
    float const sine = float(term.sign) * entry(rotary, rotary.sin, at);
    return Element(
        __fadd_rn(__fmul_rn(float(head[d]), cosine), __fmul_rn(float(head[term.partner]), sine)));
  }

  CUTE_DEVICE static float entry(Rotary const& rotary, void const* table, int64_t at) {
    if (rotary.float32) return static_cast<float const*>(table)[at];
    return float(static_cast<Element const*>(table)[at]);
  }
};

}  // namespace fa2::sm80
