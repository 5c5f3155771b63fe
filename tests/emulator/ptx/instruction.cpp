#include "instruction.h"

#include <stdexcept>

#include "emu/launch.h"

namespace selftest {

std::vector<uint64_t> run_instruction(std::string const& opcode,
                                      std::vector<uint64_t> const& operands) {
  constexpr size_t kThreads = 256;
  size_t const rows = operands.size() / kOperands;
  size_t const blocks = (rows + kThreads - 1) / kThreads;
  std::vector<uint64_t> padded = operands;
  padded.resize(blocks * kThreads * kOperands);
  std::vector<uint64_t> results(blocks * kThreads);
  emu::ScopedBuffers const buffers{
      {padded.data(), padded.size() * sizeof(uint64_t), "operands", false},
      {results.data(), results.size() * sizeof(uint64_t), "results", true}};
  emu::Options options = emu::options();
  options.random_order = options.races = false;
  WithOptions const for_now(options);
  uint64_t const* in = padded.data();
  uint64_t* out = results.data();
  void* arguments[] = {&in, &out};
  cudaLaunchConfig_t config = {};
  config.gridDim = unsigned(blocks);
  config.blockDim = unsigned(kThreads);
  if (emu::launch(config, kernel_of(opcode), arguments) != cudaSuccess) {
    throw std::runtime_error("no kernel for " + opcode);
  }
  results.resize(rows);
  return results;
}

}  // namespace selftest
