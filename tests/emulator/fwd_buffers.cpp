#include "fwd_buffers.h"

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
  void add_array(char const* name, T const* data, int64_t size) {
    add(name, data, size * int64_t(sizeof(T)), kReadOnly);
  }

  std::vector<emu::Buffer> take() { return std::move(list_); }

 private:
  FwdParams const& p_;
  std::vector<emu::Buffer> list_;
};

}  // namespace

std::vector<emu::Buffer> fwd_buffers(FwdParams const& p) {
  List list(p);
  list.add_tensor("q", p.q, p.seqs_q, p.num_heads, kReadOnly);
  list.add_tensor("k", p.k, p.seqs_k, p.num_heads_kv, kReadOnly);
  list.add_tensor("v", p.v, p.seqs_k, p.num_heads_kv, kReadOnly);
  list.add_tensor("out", p.out, p.seqs_q, p.num_heads, kWritable);
  bool const packed = p.seqs_q.cu_seqlens != nullptr;
  int64_t const rows = packed ? p.seqs_q.total : int64_t(p.batch) * p.seqs_q.max_seqlen;
  list.add("lse", p.lse, rows * p.num_heads * int64_t(sizeof(float)), kWritable);
  list.add_array("cu_seqlens_q", p.seqs_q.cu_seqlens, p.batch + 1);
  list.add_array("cu_seqlens_k", p.seqs_k.cu_seqlens, p.batch + 1);
  list.add_array("seqused_q", p.seqs_q.seqused, p.batch);
  list.add_array("seqused_k", p.seqs_k.seqused, p.batch);
  int64_t const slope_rows = p.score_mod.alibi_batch_stride == 0 ? 1 : p.batch;
  list.add_array("alibi_slopes", p.score_mod.alibi_slopes, slope_rows * p.num_heads);
  list.add_array("sink", p.sink, p.num_heads);
  list.add_array("rng_state", p.dropout.rng_state, 2);
  return list.take();
}

}  // namespace fa2::emulated
