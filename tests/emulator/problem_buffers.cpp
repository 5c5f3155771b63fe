#include "problem_buffers.h"

namespace fa2::emulated {

namespace {

constexpr bool kReadOnly = false;
constexpr bool kWritable = true;

class List {
 public:
  explicit List(FwdParams const& params) : p_(params) {}

  void add_tensor(char const* name, TensorRef const& t, SeqLens const& seqs, int64_t heads,
                  bool writable) {
    bool const packed = seqs.cu_seqlens != nullptr;
    int64_t const rows = packed ? seqs.total : seqs.max_seqlen;
    int64_t const batch = packed ? 1 : p_.batch;
    if (batch == 0 || rows == 0 || heads == 0) return;
    int64_t const elements = (batch - 1) * t.batch_stride + (rows - 1) * t.row_stride +
                             (heads - 1) * t.head_stride + p_.head_dim;
    constexpr int64_t kElementBytes = 2;  // half or bfloat16
    add(name, t.data, elements * kElementBytes, writable);
  }

  void add(char const* name, void const* data, int64_t bytes, bool writable) {
    if (data != nullptr && bytes > 0) list_.push_back({data, size_t(bytes), name, writable});
  }

  template <class T>
  void add_array(char const* name, T const* data, int64_t size, bool writable = kReadOnly) {
    add(name, data, size * int64_t(sizeof(T)), writable);
  }

  // One number for each query of each head.
  void add_rows(char const* name, float const* data, bool writable) {
    SeqLens const& q = p_.seqs_q;
    int64_t const rows = q.cu_seqlens != nullptr ? q.total : int64_t(p_.batch) * q.max_seqlen;
    add_array(name, data, rows * p_.num_heads, writable);
  }

  // What forward and backward read.
  void add_inputs() {
    FwdParams const& p = p_;
    add_tensor("q", p.q, p.seqs_q, p.num_heads, kReadOnly);
    add_tensor("k", p.k, p.seqs_k, p.num_heads_kv, kReadOnly);
    add_tensor("v", p.v, p.seqs_k, p.num_heads_kv, kReadOnly);
    add_array("cu_seqlens_q", p.seqs_q.cu_seqlens, p.batch + 1);
    add_array("cu_seqlens_k", p.seqs_k.cu_seqlens, p.batch + 1);
    add_array("seqused_q", p.seqs_q.seqused, p.batch);
    add_array("seqused_k", p.seqs_k.seqused, p.batch);
    int64_t const slope_rows = p.score_mod.alibi_batch_stride == 0 ? 1 : p.batch;
    add_array("alibi_slopes", p.score_mod.alibi_slopes, slope_rows * p.num_heads);
    add_array("sink", p.sink, p.num_heads);
    add_array("rng_state", p.dropout.rng_state, 2);
  }

  void add_results(bool writable) {
    add_tensor("out", p_.out, p_.seqs_q, p_.num_heads, writable);
    add_rows("lse", p_.lse, writable);
  }

  std::vector<emu::Buffer> take() { return std::move(list_); }

 private:
  FwdParams const& p_;
  std::vector<emu::Buffer> list_;
};

}  // namespace

std::vector<emu::Buffer> fwd_buffers(FwdParams const& p) {
  List list(p);
  list.add_inputs();
  list.add_results(kWritable);
  return list.take();
}

std::vector<emu::Buffer> bwd_buffers(BwdParams const& params, int64_t workspace_bytes) {
  FwdParams const& p = params.forward;
  List list(p);
  list.add_inputs();
  list.add_results(kReadOnly);
  list.add_tensor("grad_out", params.grad_out, p.seqs_q, p.num_heads, kReadOnly);
  list.add_rows("grad_lse", params.grad_lse, kReadOnly);
  list.add_tensor("grad_q", params.grad_q, p.seqs_q, p.num_heads, kWritable);
  list.add_tensor("grad_k", params.grad_k, p.seqs_k, p.num_heads_kv, kWritable);
  list.add_tensor("grad_v", params.grad_v, p.seqs_k, p.num_heads_kv, kWritable);
  list.add_array("grad_sink", params.grad_sink, p.num_heads, kWritable);
  list.add("workspace", params.workspace, workspace_bytes, kWritable);
  return list.take();
}

}  // namespace fa2::emulated
