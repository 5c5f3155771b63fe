#include "access_log.h"

#include <algorithm>
#include <tuple>

#include "global_memory.h"
#include "machine.h"
#include "report.h"

namespace emu {

namespace {

constexpr int kBanks = 32;
constexpr int kBankBytes = 4;
constexpr int kSectorBytes = 32;

// The accesses of one warp instruction.
struct Request {
  AccessKind kind;
  int bytes = 0;
  int buffer = -1;
  int count = 0;
  uintptr_t address[kWarpSize];
  uintptr_t target[kWarpSize];

  void start(Access const& access) {
    kind = access.kind;
    bytes = count = 0;
    buffer = -1;
  }
  void add(Access const& access) {
    if (access.bytes == 0) return;
    bytes = access.bytes;
    buffer = access.buffer;
    address[count] = access.address;
    target[count] = access.target;
    ++count;
  }
};

void count_banks(BankUse& use, uintptr_t const* addresses, Request const& request) {
  Wavefronts const w = wavefronts(addresses, request.count, request.bytes);
  ++use.requests;
  use.wavefronts += uint64_t(w.actual);
  use.ideal_wavefronts += uint64_t(w.ideal);
}

void count_sectors(Traffic& traffic, std::vector<uint64_t>& touched, Request const& request) {
  uintptr_t const origin = global_buffer(request.buffer).begin / kSectorBytes;
  uintptr_t sectors[2 * kWarpSize];
  int count = 0;
  for (int i = 0; i < request.count; ++i) {
    uintptr_t const first = request.address[i] / kSectorBytes;
    uintptr_t const last = (request.address[i] + uintptr_t(request.bytes) - 1) / kSectorBytes;
    for (uintptr_t sector = first; sector <= last; ++sector) sectors[count++] = sector;
  }
  std::sort(sectors, sectors + count);
  count = int(std::unique(sectors, sectors + count) - sectors);
  traffic.bytes += uint64_t(request.bytes) * uint64_t(request.count);
  traffic.requests += 1;
  traffic.sectors += uint64_t(count);
  for (int i = 0; i < count; ++i) {
    uintptr_t const index = sectors[i] - origin;
    uint64_t& word = touched[index / 64];
    uint64_t const bit = uint64_t(1) << index % 64;
    if (!(word & bit)) ++traffic.distinct_sectors;
    word |= bit;
  }
}

void count_request(Request const& request) {
  if (request.count == 0) return;
  switch (request.kind) {
    case AccessKind::kSharedLoad: count_banks(totals.shared_loads, request.address, request); break;
    case AccessKind::kSharedStore:
      count_banks(totals.shared_stores, request.address, request);
      break;
    case AccessKind::kCopyAsync: count_banks(totals.cp_async, request.target, request); break;
    default: break;
  }
  if (request.buffer < 0) return;
  GlobalBuffer& buffer = global_buffer(request.buffer);
  if (request.kind == AccessKind::kGlobalStore) {
    count_sectors(buffer.writes, buffer.written_sectors, request);
  } else {
    count_sectors(buffer.reads, buffer.read_sectors, request);
  }
}

// Lanes whose n-th access, n = `position`, is the same instruction are one request. Returns false
// where the lanes differ: some are predicated off or took other branches.
bool count_in_step(Warp& warp, size_t position) {
  Request request;
  Access const* first = nullptr;
  for (int l = 0; l < kWarpSize; ++l) {
    if (!(warp.exists >> l & 1)) continue;
    AccessLog const& log = warp.lanes[l].log;
    if (position >= log.size()) return false;
    Access const& access = log[position];
    if (first == nullptr) {
      first = &access;
      request.start(access);
    }
    if (access.site != first->site || access.kind != first->kind) return false;
    if (access.bytes != 0 && access.buffer != first->buffer && first->bytes != 0) return false;
    request.add(access);
  }
  count_request(request);
  return true;
}

struct Tagged {
  Access access;
  uint32_t turn;  // how often the lane has been at this instruction before
};

// The general case: lanes meet at the n-th time that each of them comes to an instruction.
void count_out_of_step(Warp& warp, size_t position) {
  std::vector<Tagged> rest;
  for (int l = 0; l < kWarpSize; ++l) {
    if (!(warp.exists >> l & 1)) continue;
    AccessLog const& log = warp.lanes[l].log;
    size_t const lane_begin = rest.size();
    for (size_t i = position; i < log.size(); ++i) {
      uint32_t turn = 0;
      for (size_t j = lane_begin; j < rest.size(); ++j) {
        turn += rest[j].access.site == log[i].site && rest[j].access.kind == log[i].kind;
      }
      rest.push_back({log[i], turn});
    }
  }
  auto const key = [](Tagged const& t) {
    return std::tuple(t.access.site, t.access.kind, t.turn, t.access.buffer);
  };
  std::stable_sort(rest.begin(), rest.end(),
                   [&](Tagged const& a, Tagged const& b) { return key(a) < key(b); });
  for (size_t begin = 0; begin < rest.size();) {
    Request request;
    request.start(rest[begin].access);
    size_t end = begin;
    for (; end < rest.size() && key(rest[end]) == key(rest[begin]); ++end) {
      request.add(rest[end].access);
    }
    count_request(request);
    begin = end;
  }
}

}  // namespace

// The hardware serves 32 lanes of up to 4 bytes at once, 16 of 8, or 8 of 16; then each bank gives
// one word per wavefront.
Wavefronts wavefronts(uintptr_t const* addresses, int count, int bytes) {
  int const lanes_at_once = bytes <= kBankBytes ? kWarpSize : kWarpSize * kBankBytes / bytes;
  int const words_each = std::max(1, bytes / kBankBytes);
  Wavefronts result{0, 0};
  for (int begin = 0; begin < count; begin += lanes_at_once) {
    int const end = std::min(count, begin + lanes_at_once);
    uintptr_t words[kBanks * 2];
    int num_words = 0;
    for (int i = begin; i < end; ++i) {
      for (int w = 0; w < words_each; ++w) {
        words[num_words++] = addresses[i] / kBankBytes + uintptr_t(w);
      }
    }
    std::sort(words, words + num_words);
    num_words = int(std::unique(words, words + num_words) - words);
    int in_bank[kBanks] = {};
    int most = 0;
    for (int i = 0; i < num_words; ++i) most = std::max(most, ++in_bank[words[i] % kBanks]);
    result.actual += most;
    result.ideal += (num_words + kBanks - 1) / kBanks;
  }
  return result;
}

void log_access(Access const& access) {
  current->log.push_back(access);
  current_warp().has_log = true;
}

void count_requests(Warp& warp) {
  RuntimeSection const section;
  size_t position = 0, longest = 0;
  for (int l = 0; l < kWarpSize; ++l) longest = std::max(longest, warp.lanes[l].log.size());
  while (position < longest && count_in_step(warp, position)) ++position;
  if (position < longest) count_out_of_step(warp, position);
  for (int l = 0; l < kWarpSize; ++l) warp.lanes[l].log.clear();
  warp.has_log = false;
}

}  // namespace emu
