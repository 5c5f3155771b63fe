#pragma once

// Writes new keys and values into a cache, of 8 bits too, and rotates them and queries: a CTA for
// each row.

#include <cute/config.hpp>

#include <cfloat>

#include "core/append.h"
#include "core/quantised.h"
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
    bool const with_values = p.new_v.data != nullptr;  // else columns of the keys
    auto const key = [&](int head, int d) {
      auto const* const from = head_ptr<Element const>(p.new_k, batch, seq.first_row + row, head);
      return rotated(p.rotary, position, from, d);
    };
    auto const value = [&](int head, int d) {
      return head_ptr<Element const>(p.new_v, batch, seq.first_row + row, head)[d];
    };
    if (p.quantised.type != CodeType::kNone) {
      quantise_row(p, p.k, p.quantised.k, batch, position, p.head_dim, key);
      if (with_values) quantise_row(p, p.v, p.quantised.v, batch, position, p.head_dim_v, value);
      return;
    }
    copy_row(p, p.k, batch, position, p.head_dim, key);
    if (with_values) copy_row(p, p.v, batch, position, p.head_dim_v, value);
  }

  // entry(head, d) are those of the row.
  template <class Entry>
  CUTE_DEVICE static void copy_row(AppendParams const& p, TensorRef const& cache, int32_t batch,
                                   int64_t position, int head_dim, Entry const& entry) {
    Element* const to =
        static_cast<Element*>(cache.data) + kv_row_offset(cache, p.pages, batch, position);
    for_entries(p.num_heads_kv, head_dim,
                [&](int head, int d) { to[head * cache.head_stride + d] = entry(head, d); });
  }

  // A warp for each head, whose factor is found first where the row has its own.
  template <class Entry>
  CUTE_DEVICE static void quantise_row(AppendParams const& p, TensorRef const& cache,
                                       Scales const& scales, int32_t batch, int64_t position,
                                       int head_dim, Entry const& entry) {
    CodeType const type = p.quantised.type;
    int const lane = threadIdx.x % 32;
    uint8_t* const row =
        static_cast<uint8_t*>(cache.data) + kv_row_offset(cache, p.pages, batch, position);
    float* const factors =
        static_cast<float*>(scales.factors.data) + scale_offset(scales, p.pages, batch, position);
    for (int head = threadIdx.x / 32; head < p.num_heads_kv; head += kThreads / 32) {
      float& place = factors[head * scales.factors.head_stride];
      float factor;
      if (scales.unit == ScaleUnit::kRow) {
        factor = row_factor(type, largest_finite(head, head_dim, entry));
        if (lane == 0) place = factor;
      } else {
        factor = place;
      }
      uint8_t* const to = row + head * cache.head_stride;
      for (int d = lane; d < head_dim; d += 32) {
        to[d] = code_of(type, __fdiv_rn(float(entry(head, d)), factor));
      }
    }
  }

  // Magnitude of an entry of a head, known to all lanes of the warp.
  template <class Entry>
  CUTE_DEVICE static float largest_finite(int head, int head_dim, Entry const& entry) {
    float largest = 0;
    for (int d = threadIdx.x % 32; d < head_dim; d += 32) {
      float const magnitude = fabsf(float(entry(head, d)));
      if (magnitude <= FLT_MAX) largest = fmaxf(largest, magnitude);
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    }
    return largest;
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
