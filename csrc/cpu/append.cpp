#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

// The conversions of elements.h, at the level of the compiler's default flags. The build compiles
// this file without fused multiply-adds, since every family rotates to the same bits.
#define FA2_CPU_LEVEL appending
#include "core/append.h"
#include "core/quantised.h"
#include "core/rotary.h"
#include "core/seq_info.h"
#include "cpu/checks.h"
#include "cpu/family.h"
#include "cpu/float_environment.h"
#include "cpu/level/pack.h"
#include "cpu/schedule.h"

namespace fa2::cpu {

namespace appending {
namespace {

// Work is handed out by this many rows of a sequence.
constexpr int32_t kRowsPerTask = 16;

template <class E>
class Appender {
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  static constexpr int kSize = kLanes<Real>;

 public:
  explicit Appender(AppendParams const& params) : params_(params) {}

  // New keys and values, and queries, from row `begin` of their sequence on.
  void rows(int32_t batch, int32_t begin) const {
    if (params_.new_k.data != nullptr) {
      SeqInfo const seq = seq_info(params_.seqs_new, batch);
      int32_t const end = std::min(begin + kRowsPerTask, seq.length);
      for (int32_t row = begin; row < end; ++row) write_key(batch, seq, row);
    }
    if (params_.q.data != nullptr) {
      SeqInfo const seq = seq_info(params_.seqs_q, batch);
      int32_t const end = std::min(begin + kRowsPerTask, seq.length);
      for (int32_t row = begin; row < end; ++row) rotate_query(batch, seq, row);
    }
  }

 private:
  void write_key(int32_t batch, SeqInfo const& seq, int32_t row) const {
    PagedKV const& pages = params_.pages;
    int64_t const position = int64_t(cached_rows(params_.seqs_k, batch)) + row;
    if (!has_place(params_, batch, position)) return;
    int64_t const to_k = kv_row_offset(params_.k, pages, batch, position);
    int64_t const to_v = kv_row_offset(params_.v, pages, batch, position);
    bool const quantises = params_.quantised.type != CodeType::kNone;
    for (int32_t head = 0; head < params_.num_heads_kv; ++head) {
      Storage const* const key = row_ptr(params_.new_k, batch, seq, row, head);
      Storage const* const value = params_.new_v.data == nullptr  // keys hold values
                                       ? nullptr
                                       : row_ptr(params_.new_v, batch, seq, row, head);
      if (quantises) {
        Storage turned[kMaxHeadDim];
        rotate(turned, key, position);
        QuantisedKV const& cache = params_.quantised;
        quantise(params_.k, cache.k, batch, position, head, turned, params_.head_dim);
        if (value != nullptr) {
          quantise(params_.v, cache.v, batch, position, head, value, params_.head_dim_v);
        }
        continue;
      }
      rotate(head_ptr<Storage>(params_.k, 0, 0, head) + to_k, key, position);
      if (value == nullptr) continue;
      copy(head_ptr<Storage>(params_.v, 0, 0, head) + to_v, value, 0, params_.head_dim_v);
    }
  }

  // A row of a cache of 8 bits, and its factor where each row has its own.
  void quantise(TensorRef const& cache, Scales const& scales, int32_t batch, int64_t position,
                int32_t head, Storage const* from, int count) const {
    CodeType const type = params_.quantised.type;
    Real x[kMaxHeadDim];
    widen(x, from, count);
    float& factor = head_ptr<float>(scales.factors, 0, 0,
                                    head)[scale_offset(scales, params_.pages, batch, position)];
    if (scales.unit == ScaleUnit::kRow) factor = row_factor(type, largest_finite(x, count));
    uint8_t* const to =
        head_ptr<uint8_t>(cache, 0, 0, head) + kv_row_offset(cache, params_.pages, batch, position);
    for (int i = 0; i < count; ++i) to[i] = code_of(type, float(x[i]) / factor);
  }

  static float largest_finite(Real const* x, int count) {
    float largest = 0;
    for (int i = 0; i < count; ++i) {
      float const magnitude = std::abs(float(x[i]));
      if (magnitude <= std::numeric_limits<float>::max()) largest = std::max(largest, magnitude);
    }
    return largest;
  }

  void rotate_query(int32_t batch, SeqInfo const& seq, int32_t row) const {
    int64_t const cached = cached_rows(params_.seqs_k, batch);
    for (int32_t head = 0; head < params_.num_heads; ++head) {
      rotate(row_ptr(params_.rotated_q, batch, seq, row, head),
             row_ptr(params_.q, batch, seq, row, head), cached + (params_.q_advances ? row : 0));
    }
  }

  static Storage* row_ptr(TensorRef const& t, int32_t batch, SeqInfo const& seq, int32_t row,
                          int32_t head) {
    return head_ptr<Storage>(t, batch, seq.first_row, head) + row * t.row_stride;
  }

  // Entries [first, end) of a row.
  static void copy(Storage* to, Storage const* from, int first, int end) {
    std::memcpy(to + first, from + first, (end - first) * sizeof(Storage));
  }

  void rotate(Storage* to, Storage const* from, int64_t position) const {
    Rotary const& rotary = params_.rotary;
    if (rotary.cos == nullptr) return copy(to, from, 0, params_.head_dim);
    int const pairs = rotary.dim / 2;
    int64_t const at = int64_t(rotary_row(rotary, position)) * pairs;
    Real x[kMaxHeadDim], cos[kMaxHeadDim], sin[kMaxHeadDim];
    widen(x, from, rotary.dim);
    widen_table(cos, rotary.cos, at, pairs);
    widen_table(sin, rotary.sin, at, pairs);
    for (int i = 0; i < pairs; ++i) {
      int const first = rotary.interleaved ? 2 * i : i;
      int const second = rotary_term(rotary, first).partner;
      Real const x0 = x[first];
      Real const x1 = x[second];
      x[first] = x0 * cos[i] - x1 * sin[i];
      x[second] = x0 * sin[i] + x1 * cos[i];
    }
    narrow(to, x, rotary.dim);
    copy(to, from, rotary.dim, params_.head_dim);
  }

  static void widen(Real* to, Storage const* from, int count) {
    for (int i = 0; i < count; i += kSize) store(to + i, load_operands<E>(from + i, count - i));
  }

  void widen_table(Real* to, void const* table, int64_t at, int count) const {
    if (!params_.rotary.float32) return widen(to, static_cast<Storage const*>(table) + at, count);
    float const* const from = static_cast<float const*>(table) + at;
    std::copy(from, from + count, to);
  }

  static void narrow(Storage* to, Real const* from, int count) {
    for (int i = 0; i < count; i += kSize) store_row<E>(to + i, load<Real>(from + i), count - i);
  }

  AppendParams const& params_;
};

template <class E>
void run(AppendParams const& params, AppendPlan const& plan) {
  Appender<E> const appender(params);
  FloatEnvironment const environment = FloatEnvironment::current();
#pragma omp parallel num_threads(plan.num_threads)
  {
    FloatEnvironmentScope const scope(environment);
#pragma omp for nowait
    for (int64_t task = 0; task < plan.num_tasks; ++task) {
      appender.rows(static_cast<int32_t>(task / plan.tasks_of_sequence),
                    static_cast<int32_t>(task % plan.tasks_of_sequence) * kRowsPerTask);
    }
  }
}

}  // namespace
}  // namespace appending

AppendPlan plan_append(AppendParams const& params, int num_threads) {
  using appending::kRowsPerTask;
  check_problem(params, num_threads);
  int32_t const most_rows = append_rows(params);
  int64_t const tasks_of_sequence = (most_rows + kRowsPerTask - 1) / kRowsPerTask;
  int64_t const num_tasks = tasks_of_sequence * params.batch;
  int64_t const entries_of_row =
      int64_t(params.head_dim) * (params.num_heads + params.num_heads_kv) +
      int64_t(params.head_dim_v) * params.num_heads_kv;
  int64_t const entries = num_tasks * std::min(most_rows, kRowsPerTask) * entries_of_row;
  return {num_tasks, tasks_of_sequence, useful_threads(entries, num_tasks, num_threads)};
}

void Family::run(AppendParams const& params, AppendPlan const& plan, Target const&) {
  using namespace appending;
  switch (params.dtype) {
    case DType::kFloat16: return appending::run<Float16>(params, plan);
    case DType::kBFloat16: return appending::run<BFloat16>(params, plan);
    case DType::kFloat32: return appending::run<Float32>(params, plan);
    case DType::kFloat64: return appending::run<Float64>(params, plan);
  }
}

}  // namespace fa2::cpu
