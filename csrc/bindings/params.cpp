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

TensorRef tensor_ref(pybind11::tuple const& tuple) {
  if (tuple.size() != 4) {
    throw pybind11::type_error("expected (data_ptr, batch_stride, row_stride, head_stride), got " +
                               std::string(pybind11::repr(tuple)));
  }
  auto field = [&](size_t i) { return tuple[i].cast<int64_t>(); };
  return {.data = reinterpret_cast<void*>(static_cast<uintptr_t>(field(0))),
          .batch_stride = field(1),
          .row_stride = field(2),
          .head_stride = field(3)};
}

CodeType code_type_of(std::string_view name) {
  for (size_t i = 0; i < std::size(kCodeTypeNames); ++i) {
    if (name == kCodeTypeNames[i]) return static_cast<CodeType>(i);
  }
  throw pybind11::type_error("unknown code type: " + std::string(name));
}

ScaleUnit scale_unit_of(std::string_view name) {
  if (name == "sequence") return ScaleUnit::kSequence;
  if (name == "page") return ScaleUnit::kPage;
  if (name == "row") return ScaleUnit::kRow;
  throw pybind11::type_error("unknown unit of scales: " + std::string(name));
}

// Each of these reads the struct of the same name. Without a dictionary for it, a struct has its
// defaults.

SeqLens seq_lens(Fields& fields) {
  return {.cu_seqlens = fields.pointer_or_null<"cu_seqlens", int32_t const>(),
          .seqused = fields.pointer_or_null<"seqused", int32_t const>(),
          .max_seqlen = fields.get<"max_seqlen", int32_t>(),
          .total = fields.get_or<"total", int64_t>(0),
          .leftpad = fields.pointer_or_null<"leftpad", int32_t const>(),
          .cu_appended = fields.pointer_or_null<"cu_appended", int32_t const>(),
          .appended = fields.get_or<"appended", int32_t>(0)};
}

PagedKV paged_kv(Fields& fields) {
  return {.block_table = fields.pointer_or_null<"block_table", int32_t const>(),
          .table_stride = fields.get<"table_stride", int64_t>(),
          .page_size = fields.get<"page_size", int32_t>(),
          .num_pages = fields.get<"num_pages", int32_t>()};
}

Scales scales(Fields& fields) {
  return {.factors = tensor_ref(fields.get<"factors", pybind11::tuple>()),
          .unit = scale_unit_of(fields.get<"unit", std::string>())};
}

QuantisedKV quantised_kv(Fields& fields) {
  return {.type = code_type_of(fields.get<"type", std::string>()),
          .k = fields.nested<"k">(scales),
          .v = fields.nested<"v">(scales)};
}

Window read_window(Fields& fields) {
  auto const left = fields.get<"left", int64_t>();
  return window(left, fields.get<"right", int64_t>());
}

BlockMask block_mask(Fields& fields) {
  return {.row_offsets = fields.pointer_or_null<"row_offsets", int64_t const>(),
          .batch_stride = fields.get<"batch_stride", int64_t>(),
          .heads = fields.get<"heads", int32_t>(),
          .cols = fields.pointer_or_null<"cols", int32_t const>(),
          .tiles = fields.pointer_or_null<"tiles", int32_t const>(),
          .bits = fields.pointer_or_null<"bits", uint64_t const>(),
          .num_entries = fields.get<"num_entries", int64_t>(),
          .num_tiles = fields.get<"num_tiles", int32_t>()};
}

Bias read_bias(Fields& fields) {
  return {.data = fields.pointer_or_null<"data", void>(),
          .dtype = dtype_of(fields.get<"dtype", std::string>()),
          .batch_stride = fields.get<"batch_stride", int64_t>(),
          .head_stride = fields.get<"head_stride", int64_t>(),
          .row_stride = fields.get<"row_stride", int64_t>(),
          .col_stride = fields.get<"col_stride", int64_t>()};
}

ScoreMod score_mod(Fields& fields) {
  return {.softcap = fields.get_or<"softcap", double>(0),
          .alibi_slopes = fields.pointer_or_null<"alibi_slopes", float const>(),
          .alibi_batch_stride = fields.get_or<"alibi_batch_stride", int64_t>(0),
          .bias = fields.nested_or_default<"bias">(read_bias),
          .relative_bias = fields.nested_or_default<"relative_bias">(read_bias)};
}

Positions positions(Fields& fields) {
  return {.q_start = fields.get<"q_start", int32_t>(),
          .k_start = fields.get<"k_start", int32_t>(),
          .seqlen_q = fields.get<"seqlen_q", int32_t>(),
          .seqlen_k = fields.get<"seqlen_k", int32_t>()};
}

Dropout dropout(Fields& fields) {
  return {.drop_prob = fields.get<"drop_prob", double>(),
          .rng_state = fields.pointer_or_null<"rng_state", int64_t const>()};
}

Rotary rotary(Fields& fields) {
  return {.cos = fields.pointer_or_null<"cos", void const>(),
          .sin = fields.pointer_or_null<"sin", void const>(),
          .rows = fields.get<"rows", int32_t>(),
          .dim = fields.get<"dim", int32_t>(),
          .interleaved = fields.get<"interleaved", bool>(),
          .float32 = fields.get_or<"float32", bool>(false)};
}

FwdParams forward_params(Fields& fields) {
  FwdParams p;
  p.dtype = dtype_of(fields.get<"dtype", std::string>());
  p.batch = fields.get<"batch", int32_t>();
  p.num_heads = fields.get<"num_heads", int32_t>();
  p.num_heads_kv = fields.get<"num_heads_kv", int32_t>();
  p.head_dim = fields.get<"head_dim", int32_t>();
  p.head_dim_v = fields.get_or<"head_dim_v", int32_t>(p.head_dim);

  p.q = tensor_ref(fields.get<"q", pybind11::tuple>());
  p.k = tensor_ref(fields.get<"k", pybind11::tuple>());
  p.v = tensor_ref(fields.get<"v", pybind11::tuple>());
  p.out = tensor_ref(fields.get<"out", pybind11::tuple>());
  p.lse = fields.pointer_or_null<"lse", float>();

  p.seqs_q = fields.nested<"seqs_q">(seq_lens);
  p.seqs_k = fields.nested<"seqs_k">(seq_lens);

  p.softmax_scale = fields.get<"softmax_scale", double>();
  p.window = fields.nested_or_default<"window">(read_window);
  p.block_mask = fields.nested_or_default<"block_mask">(block_mask);
  p.score_mod = fields.nested_or_default<"score_mod">(score_mod);
  p.sink = fields.pointer_or_null<"sink", float const>();
  p.dropout = fields.nested_or_default<"dropout">(dropout);
  p.pages = fields.nested_or_default<"pages">(paged_kv);
  p.num_splits = fields.get_or<"num_splits", int32_t>(0);
  p.batch_start = fields.get_or<"batch_start", int32_t>(0);
  p.head_start = fields.get_or<"head_start", int32_t>(0);
  p.num_heads_total = fields.get_or<"num_heads_total", int32_t>(0);
  p.positions = fields.nested_or_default<"positions">(positions);
  p.partial_lse = fields.pointer_or_null<"partial_lse", double>();
  p.quantised = fields.nested_or_default<"quantised">(quantised_kv);
  return p;
}

// What an append has of its own; the cache, its lengths, and the queries once they are rotated are
// those of the problem that it comes with.
AppendParams append_params(Fields& fields, FwdParams const& p) {
  AppendParams append{.dtype = p.dtype,
                      .batch = p.batch,
                      .num_heads = p.num_heads,
                      .num_heads_kv = p.num_heads_kv,
                      .head_dim = p.head_dim,
                      .head_dim_v = p.head_dim_v,
                      .k = p.k,
                      .v = p.v,
                      .seqs_k = p.seqs_k,
                      .pages = p.pages,
                      .new_k = tensor_ref(fields.get<"new_k", pybind11::tuple>()),
                      .new_v = tensor_ref(fields.get<"new_v", pybind11::tuple>()),
                      .seqs_new = fields.nested<"seqs_new">(seq_lens),
                      .rotary = fields.nested_or_default<"rotary">(rotary)};
  append.seqs_q = p.seqs_q;
  append.quantised = p.quantised;
  if (append.rotary.cos != nullptr) {
    append.q = tensor_ref(fields.get<"q", pybind11::tuple>());
    append.rotated_q = p.q;
    append.q_advances = fields.get<"q_advances", bool>();
  }
  return append;
}

BwdParams backward_params(Fields& fields) {
  return {.forward = fields.nested<"forward">(forward_params),
          .grad_out = tensor_ref(fields.get<"grad_out", pybind11::tuple>()),
          .grad_lse = fields.pointer_or_null<"grad_lse", float const>(),
          .grad_q = tensor_ref(fields.get<"grad_q", pybind11::tuple>()),
          .grad_k = tensor_ref(fields.get<"grad_k", pybind11::tuple>()),
          .grad_v = tensor_ref(fields.get<"grad_v", pybind11::tuple>()),
          .grad_sink = fields.pointer_or_null<"grad_sink", float>(),
          .accumulates = fields.get_or<"accumulates", bool>(false),
          .deterministic = fields.get<"deterministic", bool>(),
          .workspace = {}};
}

BiasBwdParams bias_backward_params(Fields& fields) {
  return {.forward = fields.nested<"forward">(forward_params),
          .grad_out = tensor_ref(fields.get<"grad_out", pybind11::tuple>()),
          .grad_lse = fields.pointer_or_null<"grad_lse", float const>(),
          .grad_bias = fields.nested_or_default<"grad_bias">(read_bias),
          .grad_relative_bias = fields.nested_or_default<"grad_relative_bias">(read_bias),
          .workspace = {}};
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
  ForwardCall call{.params = {forward_params(fields)}, .append = {}};
  call.params.over_cache = fields.get_or<"over_cache", bool>(false);
  call.append = fields.nested_if_given<"append">(
      [&](Fields& append) { return append_params(append, call.params); });
  fields.finish();
  return call;
}

BiasBwdParams read_bias_backward_call(pybind11::dict const& problem) {
  Fields fields(problem);
  BiasBwdParams const params = bias_backward_params(fields);
  fields.finish();
  return params;
}

BwdParams read_backward_call(pybind11::dict const& problem) {
  Fields fields(problem);
  BwdParams const params = backward_params(fields);
  fields.finish();
  return params;
}

}  // namespace fa2::bindings
