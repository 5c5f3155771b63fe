// FlashAttention-1's schedule (csrc/sm80/flash1) under the emulator as a Python module. For tests
// and for `python -m flash_attn2 io --emulate`.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/score_mod.h"
#include "emu/api.h"
#include "host/error.h"
#include "sm80/flash1/flash1.h"

namespace {

using fa2::sm80::flash1::Args;
using fa2::sm80::flash1::kHeadDim;

template <class T>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);
}

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

// Addresses of contiguous tensors: q, k, v and out (batch, seqlen, heads, 64) in float16; lse
// (batch, heads, seqlen) in float32.
void forward(uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t out, uintptr_t lse, int32_t batch,
             int32_t heads, int32_t seqlen, bool causal, double softmax_scale) {
  FA2_CHECK(batch > 0 && heads > 0 && seqlen > 0, "no sequence to attend in");
  size_t const rows = size_t(batch) * heads * seqlen;
  Memory const sums(rows * kHeadDim), max(rows), sum(rows);
  Args const args{.q = address<void>(q),
                  .k = address<void>(k),
                  .v = address<void>(v),
                  .out = address<void>(out),
                  .lse = address<float>(lse),
                  .sums = sums.data(),
                  .max = max.data(),
                  .sum = sum.data(),
                  .batch = batch,
                  .heads = heads,
                  .seqlen = seqlen,
                  .causal = causal,
                  .scale_log2 = float(softmax_scale * fa2::kLog2e)};
  size_t const bytes = rows * kHeadDim * 2, floats = rows * sizeof(float);
  emu::ScopedBuffers const buffers{
      {const_cast<void*>(args.q), bytes, "q", false},
      {const_cast<void*>(args.k), bytes, "k", false},
      {const_cast<void*>(args.v), bytes, "v", false},
      {args.out, bytes, "out", true},
      {args.lse, floats, "lse", true},
      {args.sums, floats * kHeadDim, "sums", true},
      {args.max, floats, "max", true},
      {args.sum, floats, "sum", true},
  };
  fa2::sm80::flash1::forward(args, nullptr);
}

std::string set_options(std::string const& text) {
  std::string const before = emu::to_string(emu::options());
  emu::set_options(emu::parse_options(text));
  return before;
}

std::map<std::string, std::map<std::string, double>> counters_by_kernel() {
  std::map<std::string, std::map<std::string, double>> kernels;
  for (auto const& [name, c] : emu::counters_by_kernel()) kernels[name] = c.to_map();
  return kernels;
}

}  // namespace

PYBIND11_MODULE(_flash1_emulated, m) {
  using pybind11::arg;
  m.def("forward", &forward, arg("q"), arg("k"), arg("v"), arg("out"), arg("lse"), arg("batch"),
        arg("heads"), arg("seqlen"), arg("causal"), arg("softmax_scale"),
        "Runs the forward pass on contiguous tensors, by address.");
  m.def("set_options", &set_options, arg("options"), "As in _sm80_emulated.");
  m.def("counters_by_kernel", &counters_by_kernel, "As in _sm80_emulated.");
  m.def("reset_counters", &emu::reset_counters);
}
