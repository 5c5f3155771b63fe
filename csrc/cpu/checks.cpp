#include "cpu/checks.h"

#include "core/block_mask.h"
#include "core/latents.h"
#include "cpu/kernels.h"
#include "host/check_positions.h"
#include "host/check_quantised.h"
#include "host/error.h"

namespace fa2::cpu {

namespace {

struct Sizes {
  int32_t batch;
  int32_t num_heads;
  int32_t num_heads_kv;
  HeadDims dims;
};

void check_sizes(Sizes const& sizes, int num_threads) {
  FA2_CHECK(sizes.dims.qk >= 1 && sizes.dims.qk <= kMaxHeadDim, "head_dim {} is not in 1 ... {}",
            sizes.dims.qk, kMaxHeadDim);
  FA2_CHECK(sizes.dims.v >= 1 && sizes.dims.v <= kMaxHeadDimV, "head_dim_v {} is not in 1 ... {}",
            sizes.dims.v, kMaxHeadDimV);
  FA2_CHECK(sizes.batch >= 0, "batch is {}", sizes.batch);
  FA2_CHECK(
      sizes.num_heads_kv >= 1 && sizes.num_heads >= 0 && sizes.num_heads % sizes.num_heads_kv == 0,
      "{} query heads cannot share {} KV heads", sizes.num_heads, sizes.num_heads_kv);
  FA2_CHECK(num_threads >= 1, "num_threads is {}", num_threads);
}

void check_lengths(char const* name, SeqLens const& seqs) {
  FA2_CHECK(seqs.max_seqlen >= 0 && seqs.max_seqlen <= kMaxSeqlen && seqs.total >= 0,
            "rows of {}: at most {} of a sequence, {} in all", name, seqs.max_seqlen, seqs.total);
}

void check_pages(PagedKV const& pages, SeqLens const& seqs) {
  FA2_CHECK(pages.block_table == nullptr || seqs.max_seqlen == 0 ||
                (pages.page_size >= 1 && pages.num_pages >= 1),
            "{} pages of {} rows", pages.num_pages, pages.page_size);
}

void check_block_mask(FwdParams const& params) {
  char const* const wrong = wrong_block_mask(params);
  FA2_CHECK(wrong == nullptr, "{}", wrong);
}

void check_bias(char const* name, Bias const& bias, FwdParams const& params) {
  if (bias.data == nullptr) return;
  bool const dense = params.seqs_q.cu_seqlens == nullptr && params.seqs_k.cu_seqlens == nullptr &&
                     params.pages.block_table == nullptr;
  FA2_CHECK(dense, "{} is for dense queries and keys", name);
  FA2_CHECK(bias.dtype == DType::kFloat32 || bias.dtype == params.dtype, "{} in {} for q in {}",
            name, to_string(bias.dtype), to_string(params.dtype));
}

// Of a cache that calls read, `keys` telling whether it has any that count, or write.
void check_cache(QuantisedKV const& cache, DType dtype, bool keys) {
  check_quantised(cache, keys);
  FA2_CHECK(cache.type == CodeType::kNone || dtype != DType::kFloat64, "a cache of {} for q in {}",
            to_string(cache.type), to_string(dtype));
}

// Whether tensors with these sequences can have rows.
bool has_rows(int32_t batch, SeqLens const& seqs) {
  return batch > 0 && seqs.max_seqlen > 0 && (seqs.cu_seqlens == nullptr || seqs.total > 0);
}

void check_data(char const* name, void const* data, bool has_elements) {
  FA2_CHECK(data != nullptr || !has_elements, "{} has elements but no memory", name);
}

}  // namespace

void check_problem(FwdParams const& params, int num_threads) {
  check_sizes({params.batch, params.num_heads, params.num_heads_kv, head_dims(params)},
              num_threads);
  check_lengths("q", params.seqs_q);
  check_lengths("k", params.seqs_k);
  check_pages(params.pages, params.seqs_k);
  check_block_mask(params);
  check_positions(params);
  check_bias("bias", params.score_mod.bias, params);
  check_bias("relative_bias", params.score_mod.relative_bias, params);
  bool const queries = params.num_heads > 0 && has_rows(params.batch, params.seqs_q);
  check_data("q", params.q.data, queries);
  check_data("out", params.out.data, queries);
  check_data("lse",
             params.partial_lse != nullptr ? params.partial_lse : static_cast<void*>(params.lse),
             queries);
  bool const keys = has_rows(params.batch, params.seqs_k);
  check_data("k", params.k.data, keys);
  check_data("v", params.v.data, keys);
  check_data("rng_state", params.dropout.rng_state, params.dropout.drop_prob > 0);
  check_cache(params.quantised, params.dtype, keys);
}

void check_problem(BwdParams const& params, int num_threads) {
  FwdParams const& problem = params.forward;
  check_problem(problem, num_threads);
  bool const queries = problem.num_heads > 0 && has_rows(problem.batch, problem.seqs_q);
  check_data("grad_out", params.grad_out.data, queries);
  check_data("grad_q", params.grad_q.data, queries);
  bool const keys = has_rows(problem.batch, problem.seqs_k);
  check_data("grad_k", params.grad_k.data, keys);
  check_data("grad_v", params.grad_v.data, keys);
}

void check_problem(BiasBwdParams const& params, int num_threads) {
  FwdParams const& problem = params.forward;
  check_problem(problem, num_threads);
  bool const queries = problem.num_heads > 0 && has_rows(problem.batch, problem.seqs_q);
  check_data("grad_out", params.grad_out.data, queries);
  DType const sums = problem.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  for (Bias const& grad : {params.grad_bias, params.grad_relative_bias}) {
    FA2_CHECK(grad.data == nullptr || grad.dtype == sums, "gradients of biases are summed in {}",
              to_string(sums));
    bool const dense = problem.seqs_q.cu_seqlens == nullptr && problem.seqs_k.cu_seqlens == nullptr;
    FA2_CHECK(dense && problem.pages.block_table == nullptr,
              "gradients of biases are of dense queries and keys");
    bool const steps = grad.col_stride == 0 || grad.col_stride == 1;
    FA2_CHECK(grad.data == nullptr || steps, "gradients of biases must be contiguous");
  }
}

void check_problem(AppendParams const& params, int num_threads) {
  HeadDims const dims = {params.head_dim, params.head_dim_v};
  check_sizes({params.batch, params.num_heads, params.num_heads_kv, dims}, num_threads);
  check_lengths("k", params.seqs_k);
  check_lengths("new_k", params.seqs_new);
  check_lengths("q", params.seqs_q);
  check_pages(params.pages, params.seqs_k);
  if (params.new_k.data != nullptr && has_rows(params.batch, params.seqs_new)) {
    check_data("new_v", params.new_v.data, !keys_hold_values(params));
    bool const keys = has_rows(params.batch, params.seqs_k);
    check_data("k", params.k.data, keys);
    check_data("v", params.v.data, keys);
    check_cache(params.quantised, params.dtype, keys);
  }
  if (params.q.data != nullptr) {
    check_data("rotated_q", params.rotated_q.data, has_rows(params.batch, params.seqs_q));
  }
  Rotary const& rotary = params.rotary;
  FA2_CHECK(
      rotary.cos == nullptr || (rotary.sin != nullptr && rotary.rows >= 1 && rotary.dim % 2 == 0 &&
                                rotary.dim >= 0 && rotary.dim <= params.head_dim),
      "rotary tables of {} rows and dim {} do not fit head_dim {}", rotary.rows, rotary.dim,
      params.head_dim);
}

}  // namespace fa2::cpu
