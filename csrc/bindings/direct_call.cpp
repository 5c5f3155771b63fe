#include "bindings/direct_call.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "bindings/params.h"

namespace fa2::bindings {
namespace {

namespace py = pybind11;

using Shape = std::array<int64_t, 4>;

struct DenseTensor {
  DType dtype;
  Shape shape;
  TensorRef ref;
};

std::optional<DType> dtype_of(dlpack::ElementType element) {
  if (element.lanes != 1) return std::nullopt;
  if (element.code == dlpack::kBFloat && element.bits == 16) return DType::kBFloat16;
  if (element.code != dlpack::kFloat) return std::nullopt;
  switch (element.bits) {
    case 16: return DType::kFloat16;
    case 32: return DType::kFloat32;
    case 64: return DType::kFloat64;
    default: return std::nullopt;
  }
}

// Nothing unless a kernel can read the tensor in place.
std::optional<DenseTensor> dense(dlpack::ExchangeApi const& api, py::handle object) {
  std::optional<dlpack::Tensor> const tensor = api.look_at(object);
  if (!tensor || tensor->device.type != dlpack::kCpu || tensor->ndim != 4 ||
      tensor->strides == nullptr || tensor->strides[3] != 1) {
    return std::nullopt;
  }
  std::optional<DType> const dtype = dtype_of(tensor->element);
  if (!dtype) return std::nullopt;
  DenseTensor result{.dtype = *dtype,
                     .ref = {.data = tensor->data(),
                             .batch_stride = tensor->strides[0],
                             .row_stride = tensor->strides[1],
                             .head_stride = tensor->strides[2]}};
  std::copy_n(tensor->shape, 4, result.shape.begin());
  return result;
}

bool alike(std::optional<DenseTensor> const& x, DType dtype, Shape const& shape) {
  return x && x->dtype == dtype && x->shape == shape;
}

// Objects are taken by their exact types: what else may pass for a number is Python's to say.

std::optional<int64_t> integer(py::handle value) {
  if (!PyLong_CheckExact(value.ptr())) return std::nullopt;
  int overflow = 0;
  int64_t const result = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
  return overflow == 0 ? std::optional(result) : std::nullopt;
}

std::optional<double> number(py::handle value) {
  if (PyFloat_CheckExact(value.ptr())) return PyFloat_AS_DOUBLE(value.ptr());
  std::optional<int64_t> const whole = integer(value);
  return whole ? std::optional(static_cast<double>(*whole)) : std::nullopt;
}

// A scale or a cap: 0 or from 2^-100 to 2^100, as in flash_attn2/_impl/checks.py.
std::optional<double> factor(py::handle value) {
  std::optional<double> const result = number(value);
  bool const allowed = result && (*result == 0 || (*result >= 0x1p-100 && *result <= 0x1p100));
  return allowed ? result : std::nullopt;
}

bool close_enough(double softmax_scale, double softcap) {
  double const ratio = softmax_scale / softcap;
  return softmax_scale == 0 || softcap == 0 || (ratio >= 0x1p-120 && ratio <= 0x1p120);
}

std::optional<Window> window_of(py::handle window_size, py::handle causal) {
  if (!PyTuple_CheckExact(window_size.ptr()) || PyTuple_GET_SIZE(window_size.ptr()) != 2 ||
      !PyBool_Check(causal.ptr())) {
    return std::nullopt;
  }
  std::optional<int64_t> const left = integer(PyTuple_GET_ITEM(window_size.ptr(), 0));
  std::optional<int64_t> const right = integer(PyTuple_GET_ITEM(window_size.ptr(), 1));
  if (!left || !right || *left < -1 || *right < -1) return std::nullopt;
  return window(*left, causal.ptr() == Py_True ? 0 : *right);
}

bool read_options(py::tuple const& options, FwdParams& p) {
  auto option = [&](int i) { return py::handle(PyTuple_GET_ITEM(options.ptr(), i)); };
  std::optional<double> const dropout_p = number(option(0));
  std::optional<double> const softmax_scale =
      option(1).is_none() ? std::pow(double(p.head_dim), -0.5) : factor(option(1));
  std::optional<Window> const window = window_of(option(3), option(2));
  std::optional<double> const softcap = factor(option(4));
  if (dropout_p != 0. || !softmax_scale || !window || !softcap ||
      !close_enough(*softmax_scale, *softcap)) {
    return false;
  }
  p.softmax_scale = *softmax_scale;
  p.window = *window;
  p.score_mod.softcap = *softcap;
  return true;
}

// Null unless the object is the lse of the problem, contiguous.
float* lse_of(dlpack::ExchangeApi const& api, py::handle object, FwdParams const& p) {
  std::optional<dlpack::Tensor> const tensor = api.look_at(object);
  if (!tensor || tensor->device.type != dlpack::kCpu || tensor->ndim != 3 ||
      tensor->strides == nullptr || dtype_of(tensor->element) != DType::kFloat32) {
    return nullptr;
  }
  std::array<int64_t, 3> const shape{p.batch, p.num_heads, p.seqs_q.max_seqlen};
  if (!std::equal(shape.begin(), shape.end(), tensor->shape)) return nullptr;
  int64_t stride = 1;
  for (int dim = 2; dim >= 0; stride *= shape[dim--]) {
    if (shape[dim] != 1 && tensor->strides[dim] != stride) return nullptr;
  }
  return static_cast<float*>(tensor->data());
}

void require_size(py::tuple const& tuple, size_t size, char const* meaning) {
  if (tuple.size() != size) throw py::type_error(std::string("expected a tuple ") + meaning);
}

}  // namespace

std::optional<FwdParams> read_direct_forward(dlpack::ExchangeApi const& api,
                                             py::tuple const& tensors, py::tuple const& options) {
  require_size(tensors, 4, "(q, k, v, out)");
  require_size(options, 5, "(dropout_p, softmax_scale, causal, window_size, softcap)");
  auto tensor = [&](int i) { return dense(api, PyTuple_GET_ITEM(tensors.ptr(), i)); };
  auto const q = tensor(0), k = tensor(1), v = tensor(2), out = tensor(3);
  if (!q || !k) return std::nullopt;

  auto const [batch, seqlen_q, num_heads, head_dim] = q->shape;
  auto const [batch_k, seqlen_k, num_heads_kv, head_dim_k] = k->shape;
  constexpr int64_t kMaxCount = std::numeric_limits<int32_t>::max();
  if (k->dtype != q->dtype || !alike(v, q->dtype, k->shape) || !alike(out, q->dtype, q->shape) ||
      batch_k != batch || head_dim_k != head_dim ||
      std::min({batch, seqlen_q, num_heads, num_heads_kv, head_dim}) < 1 ||
      std::max(batch, num_heads) > kMaxCount || std::max(seqlen_q, seqlen_k) > kMaxSeqlen ||
      head_dim > std::min(kMaxHeadDim, kMaxHeadDimV) || num_heads % num_heads_kv != 0) {
    return std::nullopt;
  }

  FwdParams p;
  p.dtype = q->dtype;
  p.batch = static_cast<int32_t>(batch);
  p.num_heads = static_cast<int32_t>(num_heads);
  p.num_heads_kv = static_cast<int32_t>(num_heads_kv);
  p.head_dim = static_cast<int32_t>(head_dim);
  p.head_dim_v = p.head_dim;
  p.q = q->ref;
  p.k = k->ref;
  p.v = v->ref;
  p.out = out->ref;
  p.seqs_q.max_seqlen = static_cast<int32_t>(seqlen_q);
  p.seqs_k.max_seqlen = static_cast<int32_t>(seqlen_k);
  return read_options(options, p) ? std::optional(p) : std::nullopt;
}

std::optional<BwdParams> read_direct_backward(dlpack::ExchangeApi const& api,
                                              py::tuple const& tensors, py::handle lse,
                                              py::tuple const& gradients,
                                              py::tuple const& options) {
  require_size(gradients, 4, "(grad_out, grad_q, grad_k, grad_v)");
  std::optional<FwdParams> forward = read_direct_forward(api, tensors, options);
  if (!forward) return std::nullopt;
  FwdParams& p = *forward;
  p.lse = lse_of(api, lse, p);
  if (p.lse == nullptr) return std::nullopt;
  Shape const like_q{p.batch, p.seqs_q.max_seqlen, p.num_heads, p.head_dim};
  Shape const like_k{p.batch, p.seqs_k.max_seqlen, p.num_heads_kv, p.head_dim};
  auto tensor = [&](int i) { return dense(api, PyTuple_GET_ITEM(gradients.ptr(), i)); };
  auto const grad_out = tensor(0), grad_q = tensor(1), grad_k = tensor(2), grad_v = tensor(3);
  if (!alike(grad_out, p.dtype, like_q) || !alike(grad_q, p.dtype, like_q) ||
      !alike(grad_k, p.dtype, like_k) || !alike(grad_v, p.dtype, like_k)) {
    return std::nullopt;
  }
  return BwdParams{.forward = p,
                   .grad_out = grad_out->ref,
                   .grad_q = grad_q->ref,
                   .grad_k = grad_k->ref,
                   .grad_v = grad_v->ref};
}

}  // namespace fa2::bindings
