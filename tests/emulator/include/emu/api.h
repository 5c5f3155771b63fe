#pragma once

// What tests and bindings see of the kernel emulator: options, buffers, counters, errors.

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace emu {

// A launch broke a rule of the machine; what() is the report.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class AsyncMode {
  kLate,    // cp.async moves its data at the wait that covers it
  kEarly,   // ... at once
  kRandom,  // ... one or the other
};

enum class Device {
  kSm80,  // A100
  kSm86,  // RTX 3090: less shared memory, fewer multiprocessors
};

struct Options {
  uint64_t seed = 1;
  bool random_order = true;  // of threads, warps and CTAs; false: ascending
  bool linear_ctas = false;  // start CTAs in ascending order even so
  AsyncMode async = AsyncMode::kLate;
  bool poison = true;      // shared memory and targets of copies in flight read as NaN
  bool races = true;       // happens-before checks of shared and global memory
  int ctas_in_flight = 1;  // CTAs that run interleaved
  Device device = Device::kSm80;
};

// The options of the launches to come. They start as FLASH_ATTN2_EMULATOR says, for example
// "seed=3,order=random,ctas_order=linear,async=random,poison=off,races=off,ctas=4,device=sm86".
Options options();
void set_options(Options const& options);
Options parse_options(std::string const& text);
std::string to_string(Options const& options);

// Global memory that kernels may touch. Everything else is out of bounds.
struct Buffer {
  void const* data;
  size_t bytes;
  std::string name;
  bool writable;
};

class ScopedBuffers {
 public:
  ScopedBuffers(std::initializer_list<Buffer> buffers) : ScopedBuffers(std::vector(buffers)) {}
  explicit ScopedBuffers(std::vector<Buffer> buffers);
  ~ScopedBuffers();
  ScopedBuffers(ScopedBuffers const&) = delete;
  ScopedBuffers& operator=(ScopedBuffers const&) = delete;

 private:
  std::vector<uint64_t> ids_;
};

// One direction of one buffer's traffic. A request is one instruction of one warp; it moves
// 32-byte sectors. Caches are not modelled: `distinct_sectors` is what would come from memory if
// they were perfect, `sectors` if there were none.
struct Traffic {
  uint64_t bytes = 0;
  uint64_t requests = 0;
  uint64_t sectors = 0;
  uint64_t distinct_sectors = 0;
};

// Shared-memory accesses of one kind; a wavefront is one pass through the 32 banks.
struct BankUse {
  uint64_t requests = 0;
  uint64_t wavefronts = 0;
  uint64_t ideal_wavefronts = 0;  // for the same bytes without conflicts
};

struct Counters {
  uint64_t launches = 0;
  uint64_t ctas = 0;
  uint64_t mma = 0;  // warp instructions of 16x8x16; 16x8x8 counts as a half, see mma_k8
  uint64_t mma_k8 = 0;
  uint64_t shuffles = 0;
  uint64_t votes = 0;
  uint64_t warp_syncs = 0;
  uint64_t barriers = 0;  // completed
  uint64_t atomics = 0;   // by thread
  uint64_t cp_async_bytes = 0;
  uint64_t thread_switches = 0;
  BankUse ldmatrix;
  BankUse shared_loads;
  BankUse shared_stores;
  BankUse cp_async;                       // the writes to shared memory
  std::map<std::string, Traffic> reads;   // by buffer
  std::map<std::string, Traffic> writes;  // by buffer

  Traffic total_reads() const;
  Traffic total_writes() const;
  // Flat, with names such as "mma", "ldmatrix.wavefronts", "read.q.sectors", "read.bytes".
  std::map<std::string, double> to_map() const;
  std::string to_json() const;
};

// Sums over all launches since the last reset.
Counters counters();
void reset_counters();

}  // namespace emu
