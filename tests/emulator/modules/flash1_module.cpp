// FlashAttention-1's schedule (csrc/sm80/flash1) under the emulator as a Python module. For tests
// and for `python -m flash_attn2 io --emulate`.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "core/score_mod.h"
#include "emu/api.h"
#include "emulator_functions.h"
#include "host/error.h"
#include "sm80/flash1/flash1.h"

namespace py = pybind11;

namespace {

using fa2::sm80::flash1::Args;
using fa2::sm80::flash1::BwdArgs;
using fa2::sm80::flash1::kHeadDim;

// Floats that start where a sector does.
class Memory {
 public:
  explicit Memory(size_t size) : lines_((size + kSize - 1) / kSize) {}
  float* data() const { return const_cast<float*>(lines_.data()->floats); }

 private:
  static constexpr size_t kSize = 32;
  struct alignas(128) Line {
    float floats[kSize];
  };
  std::vector<Line> lines_;
};

// A problem by addresses of contiguous tensors: q, k, v and out (batch, seqlen, heads, 64) in
// float16; lse (batch, heads, seqlen) in float32.
struct Problem {
  uintptr_t q, k, v, out, lse;
  int32_t batch, heads, seqlen;
  bool causal;
  double softmax_scale;

  size_t rows() const { return size_t(batch) * heads * seqlen; }
  size_t bytes() const { return rows() * kHeadDim * 2; }
};

Problem read(py::dict const& fields) {
  auto const number = [&](char const* name) { return fields[name].cast<int64_t>(); };
  auto const address = [&](char const* name) { return fields[name].cast<uintptr_t>(); };
  Problem const p{.q = address("q"),
                  .k = address("k"),
                  .v = address("v"),
                  .out = address("out"),
                  .lse = address("lse"),
                  .batch = int32_t(number("batch")),
                  .heads = int32_t(number("heads")),
                  .seqlen = int32_t(number("seqlen")),
                  .causal = fields["causal"].cast<bool>(),
                  .softmax_scale = fields["softmax_scale"].cast<double>()};
  FA2_CHECK(p.batch > 0 && p.heads > 0 && p.seqlen > 0, "no sequence to attend in");
  return p;
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Args args_of(Problem const& p, Memory const& sums, float* max, float* sum) {
  return {.q = pointer<void>(p.q),
          .k = pointer<void>(p.k),
          .v = pointer<void>(p.v),
          .out = pointer<void>(p.out),
          .lse = pointer<float>(p.lse),
          .sums = sums.data(),
          .max = max,
          .sum = sum,
          .batch = p.batch,
          .heads = p.heads,
          .seqlen = p.seqlen,
          .causal = p.causal,
          .scale_log2 = float(p.softmax_scale * fa2::kLog2e)};
}

std::vector<emu::Buffer> buffers_of(Problem const& p, Memory const& sums, bool results_writable) {
  size_t const floats = p.rows() * sizeof(float);
  return {{pointer<void>(p.q), p.bytes(), "q", false},
          {pointer<void>(p.k), p.bytes(), "k", false},
          {pointer<void>(p.v), p.bytes(), "v", false},
          {pointer<void>(p.out), p.bytes(), "out", results_writable},
          {pointer<void>(p.lse), floats, "lse", results_writable},
          {sums.data(), floats * kHeadDim, "sums", true}};
}

void forward(py::dict const& fields) {
  Problem const p = read(fields);
  Memory const sums(p.rows() * kHeadDim), max(p.rows()), sum(p.rows());
  std::vector<emu::Buffer> buffers = buffers_of(p, sums, true);
  buffers.push_back({max.data(), p.rows() * sizeof(float), "max", true});
  buffers.push_back({sum.data(), p.rows() * sizeof(float), "sum", true});
  emu::ScopedBuffers const registered(std::move(buffers));
  fa2::sm80::flash1::forward(args_of(p, sums, max.data(), sum.data()), nullptr);
}

void backward(py::dict const& fields, uintptr_t grad_out, uintptr_t grad_q, uintptr_t grad_k,
              uintptr_t grad_v) {
  Problem const p = read(fields);
  Memory const sums(p.rows() * kHeadDim);
  std::vector<emu::Buffer> buffers = buffers_of(p, sums, false);
  buffers.push_back({pointer<void>(grad_out), p.bytes(), "grad_out", false});
  buffers.push_back({pointer<void>(grad_q), p.bytes(), "grad_q", true});
  buffers.push_back({pointer<void>(grad_k), p.bytes(), "grad_k", true});
  buffers.push_back({pointer<void>(grad_v), p.bytes(), "grad_v", true});
  emu::ScopedBuffers const registered(std::move(buffers));
  BwdArgs const args{.forward = args_of(p, sums, nullptr, nullptr),
                     .grad_out = pointer<void>(grad_out),
                     .grad_q = pointer<void>(grad_q),
                     .grad_k = pointer<void>(grad_k),
                     .grad_v = pointer<void>(grad_v),
                     .softmax_scale = float(p.softmax_scale)};
  fa2::sm80::flash1::backward(args, nullptr);
}

}  // namespace

PYBIND11_MODULE(_flash1_emulated, m) {
  using pybind11::arg;
  m.def("forward", &forward, arg("problem"),
        "Runs the forward pass of a problem: q, k, v, out and lse as addresses of contiguous "
        "tensors, batch, heads, seqlen, causal, softmax_scale.");
  m.def("backward", &backward, arg("problem"), arg("grad_out"), arg("grad_q"), arg("grad_k"),
        arg("grad_v"), "Its gradient, likewise.");
  fa2::emulated::define_emulator(m);
}
