#include <algorithm>

#include "core/seq_info.h"
#include "cpu/checks.h"
#include "cpu/family.h"
#include "cpu/in_order.h"
#include "cpu/isa.h"
#include "host/error.h"

namespace fa2::cpu {

namespace {

using Pass = BiasBwdPlan::Pass;

// Units for each thread that even out their ends.
constexpr int64_t kUnitsPerThread = 4;

// Blocks of keys of a range, at least: what is done once for a row of queries is done for each
// range, and diagonals take their first and last blocks of keys for a part only.
constexpr int64_t kLeastBlocks = 8;

// Cuts `pass.length` into ranges where there would be few units otherwise.
void cut_ranges(Pass& pass, int64_t key_block, int num_threads) {
  int64_t const others = int64_t(pass.batches) * pass.heads * pass.row_blocks;
  int64_t const wanted = num_threads == 1 ? 1 : num_threads * kUnitsPerThread;
  int64_t const needed = (wanted + others - 1) / others;
  int64_t const most = std::max<int64_t>(1, pass.length / (kLeastBlocks * key_block));
  int64_t const count = std::min(needed, most);
  int64_t const blocks = (pass.length + count * key_block - 1) / (count * key_block);
  pass.range_length = int32_t(blocks * key_block);
  pass.ranges = (pass.length + pass.range_length - 1) / pass.range_length;
}

Pass make_pass(FwdParams const& problem, Bias const& sums, bool by_diagonals,
               BiasKernel const& kernel, int num_threads) {
  Pass pass{.sums = sums, .by_diagonals = by_diagonals};
  int32_t const seqlen_q = problem.seqs_q.max_seqlen, seqlen_k = problem.seqs_k.max_seqlen;
  bool const empty = std::min({problem.batch, problem.num_heads, seqlen_q, seqlen_k}) == 0;
  if (sums.data == nullptr || empty) return pass;
  bool const by_rows = !by_diagonals && sums.row_stride != 0;
  pass.batches = sums.batch_stride != 0 ? problem.batch : 1;
  pass.heads = sums.head_stride != 0 ? problem.num_heads : 1;
  pass.row_blocks = by_rows ? (seqlen_q + kernel.chunk_queries - 1) / kernel.chunk_queries : 1;
  pass.length = by_diagonals ? seqlen_q + seqlen_k - 1 : seqlen_k;
  if (sums.col_stride == 0) {
    pass.ranges = 1;
    pass.range_length = pass.length;
  } else {
    cut_ranges(pass, kernel.key_block, num_threads);
  }
  return pass;
}

// The problem with keys and values of one head in the place of every head's, so that each query
// head is a group of its own.
FwdParams of_one_head(FwdParams const& problem, int32_t head) {
  size_t const bytes = problem.dtype == DType::kFloat64   ? 8
                       : problem.dtype == DType::kFloat32 ? 4
                                                          : 2;
  FwdParams one = problem;
  one.num_heads_kv = problem.num_heads;
  for (TensorRef* tensor : {&one.k, &one.v}) {
    int64_t const offset = head / problem.group() * tensor->head_stride;
    tensor->data = static_cast<char*>(tensor->data) + offset * int64_t(bytes);
    tensor->head_stride = 0;
  }
  return one;
}

// [begin, end) of those that a unit goes through: its own one, or all.
struct Span {
  int32_t begin;
  int32_t end;

  static Span of(int64_t index, int32_t told_apart, int32_t all) {
    if (told_apart == 1) return {0, all};
    return {int32_t(index), int32_t(index) + 1};
  }
};

void run_unit(BiasBwdParams const& params, BiasKernel const& kernel, Pass const& pass, int64_t unit,
              void* scratch) {
  FwdParams const& problem = params.forward;
  auto next = [&](int32_t count) {
    int64_t const index = unit % count;
    unit /= count;
    return index;
  };
  int32_t const chunk = kernel.chunk_queries;
  int32_t const begin = int32_t(next(pass.ranges)) * pass.range_length;
  int32_t const end = std::min(begin + pass.range_length, pass.length);
  int32_t const all_blocks = (problem.seqs_q.max_seqlen + chunk - 1) / chunk;
  Span const blocks = Span::of(next(pass.row_blocks), pass.row_blocks, all_blocks);
  Span const heads = Span::of(next(pass.heads), pass.heads, problem.num_heads);
  Span const batches = Span::of(next(pass.batches), pass.batches, problem.batch);
  for (int32_t batch = batches.begin; batch < batches.end; ++batch) {
    SeqInfo const q_seq = seq_info(problem.seqs_q, batch);
    SeqInfo const k_seq = seq_info(problem.seqs_k, batch);
    for (int32_t head = heads.begin; head < heads.end; ++head) {
      BiasBwdParams one = params;
      one.forward = of_one_head(problem, head);
      for (int32_t block = blocks.begin; block < blocks.end; ++block) {
        int32_t const first = block * chunk;
        int32_t const count = std::min(chunk, q_seq.length - first);
        if (count <= 0) break;
        QueryChunk const queries{batch, head, first, count, q_seq, k_seq};
        kernel.run(one, {queries, pass.sums, pass.by_diagonals, begin, end}, scratch);
      }
    }
  }
}

void run_pass(BiasBwdParams const& params, BiasBwdPlan const& plan, Pass const& pass) {
  int64_t const num_units = pass.units();
  if (num_units == 0) return;
  size_t const scratch_bytes = plan.kernel.workspace_bytes(head_dims(params.forward));
  run_in_order(
      useful_threads(plan.multiply_adds, num_units, plan.num_threads), num_units, scratch_bytes,
      [&](int64_t unit, void* scratch) { run_unit(params, plan.kernel, pass, unit, scratch); });
}

}  // namespace

BiasBwdPlan plan_bias_backward(BiasBwdParams const& params, int num_threads) {
  check_problem(params, num_threads);
  FwdParams const& problem = params.forward;
  BiasKernel const& kernel = bias_kernel(problem.dtype);
  auto pass = [&](Bias const& sums, bool by_diagonals) {
    return make_pass(problem, sums, by_diagonals, kernel, num_threads);
  };
  int64_t const dims = problem.head_dim + problem.head_dim_v;  // of S and dP
  return {.kernel = kernel,
          .num_threads = num_threads,
          .passes = {pass(params.grad_bias, false), pass(params.grad_relative_bias, true)},
          .multiply_adds = dims * problem.batch * problem.num_heads * problem.seqs_q.max_seqlen *
                           problem.seqs_k.max_seqlen};
}

std::string to_string(BiasBwdPlan const& plan) {
  auto const& [bias, relative_bias] = plan.passes;
  return message("gradients of biases {}: {} units of bias, {} of relative_bias, {} threads",
                 isa_name(), bias.units(), relative_bias.units(), plan.num_threads);
}

void Family::run(BiasBwdParams const& params, BiasBwdPlan const& plan, Target const&) {
  for (Pass const& pass : plan.passes) run_pass(params, plan, pass);
}

}  // namespace fa2::cpu
