#include "access_log.h"

#include <algorithm>
#include <optional>
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
  int buffer = -1;
  LaneAccesses accesses;
  LaneAccesses targets;

  explicit Request(AccessKind kind) : kind(kind) {}
  void add(int lane, Access const& access) {
    if (access.bytes != 0) {
      accesses.add(lane, access.address, access.bytes);
      buffer = access.buffer;
    }
    if (access.target_bytes != 0) targets.add(lane, access.target, access.target_bytes);
  }
};

void count_banks(BankUse& use, LaneAccesses const& accesses) {
  Wavefronts const w = wavefronts(accesses);
  ++use.requests;
  use.wavefronts += uint64_t(w.actual);
  use.ideal_wavefronts += uint64_t(w.ideal);
}

void count_sectors(Traffic& traffic, std::vector<uint64_t>& touched, uintptr_t origin,
                   LaneAccesses const& accesses) {
  uintptr_t sectors[2 * kWarpSize];
  int count = 0;
  for (int i = 0; i < accesses.count; ++i) {
    uintptr_t const begin = accesses.address[i];
    uintptr_t const last = (begin + uintptr_t(accesses.bytes) - 1) / kSectorBytes;
    for (uintptr_t s = begin / kSectorBytes; s <= last; ++s) sectors[count++] = s;
  }
  std::sort(sectors, sectors + count);
  count = int(std::unique(sectors, sectors + count) - sectors);
  traffic.bytes += uint64_t(accesses.bytes) * uint64_t(accesses.count);
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
  if (request.kind == AccessKind::kCopyAsync) count_banks(totals.cp_async, request.targets);
  if (request.accesses.count == 0) return;
  if (request.kind == AccessKind::kSharedLoad) count_banks(totals.shared_loads, request.accesses);
  if (request.kind == AccessKind::kSharedStore) {
    count_banks(totals.shared_stores, request.accesses);
  }
  if (request.buffer < 0) return;
  GlobalBuffer& buffer = global_buffer(request.buffer);
  uintptr_t const origin = buffer.begin / kSectorBytes;
  if (request.kind == AccessKind::kGlobalStore) {
    count_sectors(buffer.writes, buffer.written_sectors, origin, request.accesses);
  } else {
    count_sectors(buffer.reads, buffer.read_sectors, origin, request.accesses);
  }
}

// Lanes whose n-th access, n = `position`, is the same instruction are one request. Returns false
// where the lanes differ: some are predicated off or took other branches.
bool count_in_step(Warp& warp, size_t position) {
  std::optional<Request> request;
  void const* site = nullptr;
  for (int l = 0; l < kWarpSize; ++l) {
    if (!(warp.exists >> l & 1)) continue;
    AccessLog const& log = warp.lanes[l].log;
    if (position >= log.size()) return false;
    Access const& access = log[position];
    if (!request) {
      request.emplace(access.kind);
      site = access.site;
    }
    if (access.site != site || access.kind != request->kind) return false;
    bool const counts = access.bytes != 0 && request->accesses.count != 0;
    if (counts && access.buffer != request->buffer) return false;
    request->add(l, access);
  }
  if (request) count_request(*request);
  return true;
}

struct Tagged {
  Access access;
  int lane;
  uint32_t turn;  // how often the lane has been at this instruction before

  auto instruction() const { return std::tuple(access.site, access.kind); }
  auto request() const { return std::tuple(instruction(), turn, access.buffer); }
};

// The general case: lanes meet at the n-th time that each of them comes to an instruction.
void count_out_of_step(Warp& warp, size_t position) {
  std::vector<Tagged> rest;
  for (int l = 0; l < kWarpSize; ++l) {
    if (!(warp.exists >> l & 1)) continue;
    AccessLog const& log = warp.lanes[l].log;
    for (size_t i = position; i < log.size(); ++i) rest.push_back({log[i], l, 0});
  }
  // By instruction, then lane, then time: gives the turns. Then by request, lanes ascending.
  std::stable_sort(rest.begin(), rest.end(), [](Tagged const& a, Tagged const& b) {
    return std::tuple(a.instruction(), a.lane) < std::tuple(b.instruction(), b.lane);
  });
  for (size_t i = 1; i < rest.size(); ++i) {
    bool const again =
        rest[i].lane == rest[i - 1].lane && rest[i].instruction() == rest[i - 1].instruction();
    if (again) rest[i].turn = rest[i - 1].turn + 1;
  }
  std::stable_sort(rest.begin(), rest.end(),
                   [](Tagged const& a, Tagged const& b) { return a.request() < b.request(); });
  for (size_t begin = 0; begin < rest.size();) {
    Request request(rest[begin].access.kind);
    size_t end = begin;
    for (; end < rest.size() && rest[end].request() == rest[begin].request(); ++end) {
      request.add(rest[end].lane, rest[end].access);
    }
    count_request(request);
    begin = end;
  }
}

}  // namespace

// The hardware serves 32 lanes of up to 4 bytes at once, 16 of 8, or 8 of 16; then each bank gives
// one word per wavefront.
Wavefronts wavefronts(LaneAccesses const& accesses) {
  int const words_each = std::max(1, accesses.bytes / kBankBytes);
  int const lanes_at_once = kWarpSize / words_each;
  Wavefronts result{0, 0};
  for (int begin = 0, end; begin < accesses.count; begin = end) {
    uintptr_t words[2 * kBanks];
    int num_words = 0;
    int const turn = accesses.lane[begin] / lanes_at_once;
    for (end = begin; end < accesses.count && accesses.lane[end] / lanes_at_once == turn; ++end) {
      uintptr_t const first = accesses.address[end] / kBankBytes;
      for (int w = 0; w < words_each; ++w) words[num_words++] = first + uintptr_t(w);
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
