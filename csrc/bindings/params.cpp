#include "bindings/params.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "bindings/fields.h"

namespace fa2::bindings {
namespace {

DType dtype_of(std::string_view name) {
  constexpr std::array<std::pair<std::string_view, DType>, 4> kDTypes{{
      {"float16", DType::kFloat16},
      {"bfloat16", DType::kBFloat16},
      {"float32", DType::kFloat32},
      {"float64", DType::kFloat64},
  }};
  for (auto const& [known, dtype] : kDTypes) {
    if (name == known) return dtype;
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

int32_t window_side(int64_t keys) {
  return keys < 0 ? Window::kUnlimited
                  : static_cast<int32_t>(std::min<int64_t>(keys, Window::kUnlimited));
}

FwdParams fwd_params(Fields& fields) {
  FwdParams p;
  p.dtype = dtype_of(fields.get<"dtype", std::string_view>());
  p.batch = fields.get<"batch", int32_t>();
  p.num_heads = fields.get<"num_heads", int32_t>();
  p.num_heads_kv = fields.get<"num_heads_kv", int32_t>();
  p.head_dim = fields.get<"head_dim", int32_t>();

  p.q = tensor_ref(fields.get<"q", pybind11::tuple>());
  p.k = tensor_ref(fields.get<"k", pybind11::tuple>());
  p.v = tensor_ref(fields.get<"v", pybind11::tuple>());
  p.out = tensor_ref(fields.get<"out", pybind11::tuple>());
  p.lse = pointer<float>(fields.get<"lse", int64_t>());

  p.seqs_q = {.cu_seqlens = pointer<int32_t const>(fields.get_or<"cu_seqlens_q", int64_t>(0)),
              .seqused = pointer<int32_t const>(fields.get_or<"seqused_q", int64_t>(0)),
              .max_seqlen = fields.get<"seqlen_q", int32_t>(),
              .total = fields.get_or<"total_q", int64_t>(0)};
  p.seqs_k = {.cu_seqlens = pointer<int32_t const>(fields.get_or<"cu_seqlens_k", int64_t>(0)),
              .seqused = pointer<int32_t const>(fields.get_or<"seqused_k", int64_t>(0)),
              .max_seqlen = fields.get<"seqlen_k", int32_t>(),
              .total = fields.get_or<"total_k", int64_t>(0)};

  p.softmax_scale = fields.get<"softmax_scale", double>();
  p.window = {.left = window_side(fields.get<"window_left", int64_t>()),
              .right = window_side(fields.get<"window_right", int64_t>())};
  p.score_mod = {.softcap = fields.get_or<"softcap", float>(0.f),
                 .alibi_slopes = pointer<float const>(fields.get_or<"alibi_slopes", int64_t>(0)),
                 .alibi_batch_stride = fields.get_or<"alibi_batch_stride", int64_t>(0)};
  p.sink = pointer<float const>(fields.get_or<"sink", int64_t>(0));
  p.dropout = {.drop_prob = fields.get_or<"drop_prob", float>(0.f),
               .rng_state = pointer<int64_t const>(fields.get_or<"rng_state", int64_t>(0))};
  return p;
}

BwdParams bwd_params(Fields& fields) {
  return {.forward = fwd_params(fields),
          .grad_out = tensor_ref(fields.get<"grad_out", pybind11::tuple>()),
          .grad_lse = pointer<float const>(fields.get_or<"grad_lse", int64_t>(0)),
          .grad_q = tensor_ref(fields.get<"grad_q", pybind11::tuple>()),
          .grad_k = tensor_ref(fields.get<"grad_k", pybind11::tuple>()),
          .grad_v = tensor_ref(fields.get<"grad_v", pybind11::tuple>()),
          .grad_sink = pointer<float>(fields.get_or<"grad_sink", int64_t>(0)),
          .deterministic = fields.get_or<"deterministic", bool>(false),
          .workspace = pointer<void>(fields.get_or<"workspace", int64_t>(0))};
}

}  // namespace

ForwardCall read_forward_call(pybind11::dict const& problem) {
  Fields fields(problem);
  ForwardCall const call{.params = fwd_params(fields),
                         .execution = fields.get<"execution", int64_t>()};
  fields.finish();
  return call;
}

BackwardCall read_backward_call(pybind11::dict const& problem) {
  Fields fields(problem);
  BackwardCall const call{.params = bwd_params(fields),
                          .execution = fields.get<"execution", int64_t>()};
  fields.finish();
  return call;
}

FwdParams read_fwd_params(pybind11::dict const& problem) {
  Fields fields(problem);
  FwdParams const params = fwd_params(fields);
  fields.finish();
  return params;
}

BwdParams read_bwd_params(pybind11::dict const& problem) {
  Fields fields(problem);
  BwdParams const params = bwd_params(fields);
  fields.finish();
  return params;
}

}  // namespace fa2::bindings
