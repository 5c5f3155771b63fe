#include "bindings/params.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>

#include "bindings/fields.h"

namespace fa2::bindings {
namespace {

DType dtype_of(std::string_view name) {
  for (size_t i = 0; i < std::size(kDTypeNames); ++i) {
    if (name == kDTypeNames[i]) return static_cast<DType>(i);
  }
  throw pybind11::type_error("unknown dtype: " + std::string(name));
}

template <class T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

TensorRef tensor_ref(pybind11::tuple const& tuple) {
  auto field = [&](size_t i) { return tuple[i].cast<int64_t>(); };
  return {.data = pointer<void>(field(0)),
          .batch_stride = field(1),
          .row_stride = field(2),
          .head_stride = field(3)};
}

// Null where the problem has no such tensor.
template <Name kName>
TensorRef optional_tensor_ref(Fields& fields) {
  auto const tuple = fields.get_or<kName, pybind11::tuple>(pybind11::tuple());
  return tuple.empty() ? TensorRef{} : tensor_ref(tuple);
}

// Fields that end in _q, _k or _new.
SeqLens seqs_q(Fields& fields) {
  return {.cu_seqlens = pointer<int32_t const>(fields.get_or<"cu_seqlens_q", int64_t>(0)),
          .seqused = pointer<int32_t const>(fields.get_or<"seqused_q", int64_t>(0)),
          .max_seqlen = fields.get<"seqlen_q", int32_t>(),
          .total = fields.get_or<"total_q", int64_t>(0)};
}

SeqLens seqs_k(Fields& fields) {
  return {.cu_seqlens = pointer<int32_t const>(fields.get_or<"cu_seqlens_k", int64_t>(0)),
          .seqused = pointer<int32_t const>(fields.get_or<"seqused_k", int64_t>(0)),
          .max_seqlen = fields.get<"seqlen_k", int32_t>(),
          .total = fields.get_or<"total_k", int64_t>(0),
          .leftpad = pointer<int32_t const>(fields.get_or<"leftpad_k", int64_t>(0)),
          .cu_appended = pointer<int32_t const>(fields.get_or<"cu_appended_k", int64_t>(0)),
          .appended = fields.get_or<"appended_k", int32_t>(0)};
}

SeqLens seqs_new(Fields& fields) {
  return {.cu_seqlens = pointer<int32_t const>(fields.get_or<"cu_seqlens_new", int64_t>(0)),
          .max_seqlen = fields.get_or<"seqlen_new", int32_t>(0),
          .total = fields.get_or<"total_new", int64_t>(0)};
}

PagedKV paged_kv(Fields& fields) {
  return {.block_table = pointer<int32_t const>(fields.get_or<"block_table", int64_t>(0)),
          .table_stride = fields.get_or<"block_table_stride", int64_t>(0),
          .page_size = fields.get_or<"page_size", int32_t>(0),
          .num_pages = fields.get_or<"num_pages", int32_t>(0)};
}

// What a forward call and its backward call have in common.
FwdParams problem(Fields& fields) {
  FwdParams p;
  p.dtype = dtype_of(fields.get<"dtype", std::string>());
  p.batch = fields.get<"batch", int32_t>();
  p.num_heads = fields.get<"num_heads", int32_t>();
  p.num_heads_kv = fields.get<"num_heads_kv", int32_t>();
  p.head_dim = fields.get<"head_dim", int32_t>();

  p.q = tensor_ref(fields.get<"q", pybind11::tuple>());
  p.k = tensor_ref(fields.get<"k", pybind11::tuple>());
  p.v = tensor_ref(fields.get<"v", pybind11::tuple>());
  p.out = tensor_ref(fields.get<"out", pybind11::tuple>());
  p.lse = pointer<float>(fields.get<"lse", int64_t>());

  p.seqs_q = seqs_q(fields);
  p.seqs_k = seqs_k(fields);

  p.softmax_scale = fields.get<"softmax_scale", double>();
  auto const window_left = fields.get<"window_left", int64_t>();
  p.window = window(window_left, fields.get<"window_right", int64_t>());
  p.score_mod = {.softcap = fields.get_or<"softcap", double>(0),
                 .alibi_slopes = pointer<float const>(fields.get_or<"alibi_slopes", int64_t>(0)),
                 .alibi_batch_stride = fields.get_or<"alibi_batch_stride", int64_t>(0)};
  p.sink = pointer<float const>(fields.get_or<"sink", int64_t>(0));
  p.dropout = {.drop_prob = fields.get_or<"drop_prob", double>(0),
               .rng_state = pointer<int64_t const>(fields.get_or<"rng_state", int64_t>(0))};
  return p;
}

FwdParams forward_params(Fields& fields) {
  FwdParams p = problem(fields);
  p.pages = paged_kv(fields);
  p.num_splits = fields.get_or<"num_splits", int32_t>(0);
  return p;
}

BwdParams backward_params(Fields& fields) {
  return {.forward = problem(fields),
          .grad_out = tensor_ref(fields.get<"grad_out", pybind11::tuple>()),
          .grad_lse = pointer<float const>(fields.get_or<"grad_lse", int64_t>(0)),
          .grad_q = tensor_ref(fields.get<"grad_q", pybind11::tuple>()),
          .grad_k = tensor_ref(fields.get<"grad_k", pybind11::tuple>()),
          .grad_v = tensor_ref(fields.get<"grad_v", pybind11::tuple>()),
          .grad_sink = pointer<float>(fields.get_or<"grad_sink", int64_t>(0)),
          .deterministic = fields.get_or<"deterministic", bool>(false),
          .workspace = {}};
}

AppendParams append_params(Fields& fields) {
  return {.dtype = dtype_of(fields.get<"dtype", std::string>()),
          .batch = fields.get<"batch", int32_t>(),
          .num_heads = fields.get<"num_heads", int32_t>(),
          .num_heads_kv = fields.get<"num_heads_kv", int32_t>(),
          .head_dim = fields.get<"head_dim", int32_t>(),
          .k = tensor_ref(fields.get<"k", pybind11::tuple>()),
          .v = tensor_ref(fields.get<"v", pybind11::tuple>()),
          .seqs_k = seqs_k(fields),
          .pages = paged_kv(fields),
          .new_k = optional_tensor_ref<"new_k">(fields),
          .new_v = optional_tensor_ref<"new_v">(fields),
          .seqs_new = seqs_new(fields),
          .rotary = {.cos = pointer<void const>(fields.get_or<"rotary_cos", int64_t>(0)),
                     .sin = pointer<void const>(fields.get_or<"rotary_sin", int64_t>(0)),
                     .rows = fields.get_or<"rotary_rows", int32_t>(0),
                     .dim = fields.get_or<"rotary_dim", int32_t>(0),
                     .interleaved = fields.get_or<"rotary_interleaved", bool>(false)},
          .q = optional_tensor_ref<"q">(fields),
          .rotated_q = optional_tensor_ref<"rotated_q">(fields),
          .seqs_q = seqs_q(fields),
          .q_advances = fields.get_or<"q_advances", bool>(false)};
}

}  // namespace

Window window(int64_t left, int64_t right) {
  auto side = [](int64_t keys) {
    return keys < 0 ? Window::kUnlimited
                    : static_cast<int32_t>(std::min<int64_t>(keys, Window::kUnlimited));
  };
  return {.left = side(left), .right = side(right)};
}

ForwardCall read_forward_call(pybind11::dict const& problem) {
  Fields fields(problem);
  ForwardCall call{.params = forward_params(fields), .append = {}};
  auto const append = fields.get_or<"append", pybind11::dict>(pybind11::dict());
  fields.finish();
  if (!append.empty()) {
    Fields append_fields(append);
    call.append = append_params(append_fields);
    append_fields.finish();
  }
  return call;
}

BwdParams read_backward_call(pybind11::dict const& problem) {
  Fields fields(problem);
  BwdParams const params = backward_params(fields);
  fields.finish();
  return params;
}

}  // namespace fa2::bindings
