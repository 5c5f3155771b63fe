// Standard attention's kernels (csrc/sm80/standard) under the emulator as a Python module. For
// tests and for `python -m flash_attn2 io --emulate`.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "emu/api.h"
#include "emulator_functions.h"
#include "host/error.h"
#include "sm80/standard/standard.h"

namespace {

using namespace fa2::sm80::standard;

// Name, address, bytes; strides of batch, head and row in elements.
using Operand = std::tuple<std::string, uintptr_t, size_t, int64_t, int64_t, int64_t>;

Matrix matrix(Operand const& operand) {
  return {reinterpret_cast<void*>(std::get<1>(operand)), std::get<3>(operand), std::get<4>(operand),
          std::get<5>(operand)};
}

emu::Buffer buffer(Operand const& operand, bool writable) {
  return {reinterpret_cast<void*>(std::get<1>(operand)), std::get<2>(operand), std::get<0>(operand),
          writable};
}

void run_product(std::string const& name, Operand const& a, Operand const& b, Operand const& c,
                 std::tuple<int, int> pairs, std::tuple<int, int, int> shape, float scale) {
  static std::map<std::string, Form> const forms = {
      {"by_rows", Form::kByRows}, {"by_cols", Form::kByCols}, {"transposed_a", Form::kTransposedA}};
  auto const [rows, cols, depth] = shape;
  emu::ScopedBuffers const buffers({buffer(a, false), buffer(b, false), buffer(c, true)});
  product(forms.at(name),
          {.a = matrix(a),
           .b = matrix(b),
           .c = matrix(c),
           .batch = std::get<0>(pairs),
           .heads = std::get<1>(pairs),
           .rows = rows,
           .cols = cols,
           .depth = depth,
           .scale = scale},
          nullptr);
}

SoftmaxArgs softmax_args(Operand const& in, Operand const& out, std::tuple<int, int> pairs,
                         int seqlen, bool causal) {
  FA2_CHECK(seqlen <= kMostSeqlen, "a row of {} scores does not fit", seqlen);
  return {.in = matrix(in),
          .grad = {},
          .out = matrix(out),
          .batch = std::get<0>(pairs),
          .heads = std::get<1>(pairs),
          .seqlen = seqlen,
          .causal = causal};
}

void run_softmax(Operand const& scores, Operand const& probs, std::tuple<int, int> pairs,
                 int seqlen, bool causal) {
  emu::ScopedBuffers const buffers({buffer(scores, false), buffer(probs, true)});
  softmax(softmax_args(scores, probs, pairs, seqlen, causal), nullptr);
}

void run_softmax_grad(Operand const& probs, Operand const& grad, Operand const& out,
                      std::tuple<int, int> pairs, int seqlen) {
  emu::ScopedBuffers const buffers({buffer(probs, false), buffer(grad, false), buffer(out, true)});
  SoftmaxArgs args = softmax_args(probs, out, pairs, seqlen, false);
  args.grad = matrix(grad);
  softmax_grad(args, nullptr);
}

}  // namespace

PYBIND11_MODULE(_standard_emulated, m) {
  using pybind11::arg;
  m.def("product", &run_product, arg("form"), arg("a"), arg("b"), arg("c"), arg("pairs"),
        arg("shape"), arg("scale"),
        "C = scale A B for each of (batch, heads). Operands are (name, address, bytes, batch "
        "stride, head stride, row stride); shape is (rows, cols, depth).");
  m.def("softmax", &run_softmax, arg("scores"), arg("probs"), arg("pairs"), arg("seqlen"),
        arg("causal"), "P = softmax(S).");
  m.def("softmax_grad", &run_softmax_grad, arg("probs"), arg("grad_probs"), arg("grad_scores"),
        arg("pairs"), arg("seqlen"), "dS = P * (dP - rowsum(P * dP)).");
  fa2::emulated::define_emulator(m);
}
