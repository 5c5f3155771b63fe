#include "global_memory.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <new>

#include "machine.h"
#include "report.h"

namespace emu {

namespace {

constexpr size_t kSectorBytes = 32;

// When a cell was accessed: the warp's tick, whether by an atomic, the lane.
class Stamp {
 public:
  static uint32_t pack(uint32_t tick, bool atomic, int lane) {
    return tick << 6 | uint32_t(atomic) << 5 | uint32_t(lane);
  }
  explicit Stamp(uint32_t packed) : packed_(packed) {}
  uint32_t tick() const { return packed_ >> 6; }
  bool atomic() const { return packed_ >> 5 & 1; }
  uint32_t lane() const { return packed_ & 31; }

 private:
  uint32_t packed_;
};

// ---- registration

struct Registered {
  uint64_t id;
  Buffer buffer;
};

std::mutex registry_mutex;
std::vector<Registered> registry;
uint64_t next_id = 0;

// ---- the launch's view

struct Range {
  uintptr_t begin, end;
};

std::vector<GlobalBuffer> buffers;
std::vector<Range> constants;  // read-only data of the program, and the kernel's arguments

size_t shadow_bytes(GlobalBuffer const& b) {
  return (b.end - b.begin) * sizeof(GlobalBuffer::Cell);
}

// The read-only segments of the module that holds `function`: literals, constant tables.
void add_module_constants(void const* function) {
  struct Search {
    uintptr_t function;
  } search{uintptr_t(function)};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* argument) {
        auto const wanted = static_cast<Search*>(argument)->function;
        bool found = false;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          auto const& segment = info->dlpi_phdr[i];
          uintptr_t const begin = info->dlpi_addr + segment.p_vaddr;
          found |= segment.p_type == PT_LOAD && wanted - begin < segment.p_memsz;
        }
        if (!found) return 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          auto const& segment = info->dlpi_phdr[i];
          bool const read_only = segment.p_type == PT_LOAD && !(segment.p_flags & PF_W);
          if (!read_only && segment.p_type != PT_GNU_RELRO) continue;
          uintptr_t const begin = info->dlpi_addr + segment.p_vaddr;
          constants.push_back({begin, begin + segment.p_memsz});
        }
        return 1;
      },
      &search);
}

bool ordered_before_me(Warp const& warp, uint32_t other, Stamp stamp) {
  if (other == warp.global_index) {
    return stamp.tick() < warp.tick || stamp.lane() == uint32_t(current->lane);
  }
  uint32_t const index_in_cta = other - (warp.global_index - uint32_t(warp.index));
  if (index_in_cta < uint32_t(warp.cta->num_warps) && stamp.tick() < warp.known[index_in_cta]) {
    return true;
  }
  return warp.foreign.covers(other, stamp.tick(), stamp.lane()) ||
         current->order.acquired.covers(other, stamp.tick(), stamp.lane());
}

// "CTA #3 warp 1 lane 7".
Place describe_access(uint32_t global_warp, Stamp stamp) {
  uint32_t const warps = uint32_t(current_cta().num_warps);
  Place place;
  std::snprintf(place.text, sizeof(place.text), "CTA #%u warp %u lane %u%s", global_warp / warps,
                global_warp % warps, stamp.lane(), stamp.atomic() ? " (atomic)" : "");
  return place;
}

void check_order(GlobalBuffer& buffer, uintptr_t address, size_t bytes, GlobalAccess access,
                 void const* site) {
  Warp const& warp = current_warp();
  bool const atomic = access == GlobalAccess::kAtomic;
  uint32_t const stamp = Stamp::pack(warp.tick, atomic, current->lane);
  auto const report = [&](char const* what, uint32_t other, Stamp other_stamp) {
    note(site, "race in %s: %s %s", describe_address(reinterpret_cast<void const*>(address)).text,
         what, describe_access(other, other_stamp).text);
  };
  for (size_t i = 0; i < bytes; ++i) {
    GlobalBuffer::Cell& cell = buffer.cells[address - buffer.begin + i];
    Stamp const written(cell.write_stamp), read(cell.read_stamp);
    bool const both_atomic = atomic && written.atomic();
    if (cell.write_stamp != 0 && !both_atomic && !ordered_before_me(warp, cell.writer, written)) {
      report(access == GlobalAccess::kLoad ? "read that nothing orders after the write of"
                                           : "write that nothing orders after the write of",
             cell.writer, written);
      cell.write_stamp = 0;
    }
    if (access == GlobalAccess::kLoad) {
      cell.reader = warp.global_index;
      cell.read_stamp = stamp;
      continue;
    }
    if (cell.read_stamp != 0 && !ordered_before_me(warp, cell.reader, read)) {
      report("write that nothing orders after the read of", cell.reader, read);
    }
    cell.writer = warp.global_index;
    cell.write_stamp = stamp;
    cell.read_stamp = 0;
  }
}

[[noreturn]] void fail_outside(void const* address, size_t bytes, GlobalAccess access,
                               void const* site) {
  GlobalBuffer const* nearest = nullptr;
  uintptr_t distance = ~uintptr_t(0);
  for (GlobalBuffer const& b : buffers) {
    uintptr_t const gap = uintptr_t(address) < b.begin ? b.begin - uintptr_t(address)
                                                       : uintptr_t(address) + bytes - b.end;
    if (gap < distance) {
      distance = gap;
      nearest = &b;
    }
  }
  char const* const verb = access == GlobalAccess::kLoad ? "reads" : "writes";
  if (nearest == nullptr) {
    fail(site, "out of bounds: %s %zu bytes at %p; no buffers are registered", verb, bytes,
         address);
  }
  ptrdiff_t const offset = ptrdiff_t(uintptr_t(address) - nearest->begin);
  fail(site, "out of bounds: %s %zu bytes at %s %c %td, a buffer of %zu bytes", verb, bytes,
       nearest->name.c_str(), offset < 0 ? '-' : '+', offset < 0 ? -offset : offset,
       size_t(nearest->end - nearest->begin));
}

}  // namespace

ScopedBuffers::ScopedBuffers(std::vector<Buffer> list) {
  std::lock_guard const lock(registry_mutex);
  for (Buffer& buffer : list) {
    ids_.push_back(next_id);
    registry.push_back({next_id++, std::move(buffer)});
  }
}

ScopedBuffers::~ScopedBuffers() {
  std::lock_guard const lock(registry_mutex);
  std::erase_if(registry, [this](Registered const& r) {
    return std::find(ids_.begin(), ids_.end(), r.id) != ids_.end();
  });
}

GlobalBuffer::GlobalBuffer(Buffer const& buffer, bool track_order)
    : begin(uintptr_t(buffer.data)),
      end(begin + buffer.bytes),
      name(buffer.name),
      writable(buffer.writable) {
  size_t const sectors = end / kSectorBytes - begin / kSectorBytes + 1;
  read_sectors.resize(sectors / 64 + 1);
  written_sectors.resize(sectors / 64 + 1);
  if (!writable || !track_order) return;
  void* const memory = mmap(nullptr, shadow_bytes(*this), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  cells = static_cast<Cell*>(memory);
}

GlobalBuffer::GlobalBuffer(GlobalBuffer&& other) noexcept
    : begin(other.begin),
      end(other.end),
      name(std::move(other.name)),
      writable(other.writable),
      cells(std::exchange(other.cells, nullptr)),
      reads(other.reads),
      writes(other.writes),
      read_sectors(std::move(other.read_sectors)),
      written_sectors(std::move(other.written_sectors)) {}

GlobalBuffer::~GlobalBuffer() {
  if (cells != nullptr) munmap(cells, shadow_bytes(*this));
}

void open_global_memory(void const* function, void const* arguments, size_t argument_bytes,
                        bool track_order) {
  std::lock_guard const lock(registry_mutex);
  buffers.clear();
  for (Registered const& r : registry) {
    if (r.buffer.bytes > 0) buffers.emplace_back(r.buffer, track_order);
  }
  constants.clear();
  constants.push_back({uintptr_t(arguments), uintptr_t(arguments) + argument_bytes});
  add_module_constants(function);
}

void close_global_memory() {
  auto const add = [](Traffic& total, Traffic const& part) {
    total.bytes += part.bytes;
    total.requests += part.requests;
    total.sectors += part.sectors;
    total.distinct_sectors += part.distinct_sectors;
  };
  for (GlobalBuffer const& buffer : buffers) {
    add(totals.reads[buffer.name], buffer.reads);
    add(totals.writes[buffer.name], buffer.writes);
  }
  buffers.clear();
}

int check_global(void const* address, size_t bytes, GlobalAccess access, void const* site) {
  bool const writes = access != GlobalAccess::kLoad;
  GlobalBuffer* read_only = nullptr;
  for (GlobalBuffer& buffer : buffers) {
    if (!buffer.contains(address, bytes)) continue;
    if (writes && !buffer.writable) {
      read_only = &buffer;
      continue;
    }
    if (buffer.cells != nullptr) check_order(buffer, uintptr_t(address), bytes, access, site);
    return int(&buffer - buffers.data());
  }
  if (read_only != nullptr) {
    fail(site, "writes to %s, which is read-only", describe_address(address).text);
  }
  for (Range const& range : constants) {
    bool const inside =
        uintptr_t(address) >= range.begin && uintptr_t(address) + bytes <= range.end;
    if (inside && !writes) return -1;
  }
  fail_outside(address, bytes, access, site);
}

GlobalBuffer& global_buffer(int index) { return buffers[size_t(index)]; }

Place describe_address(void const* address) {
  Place place;
  for (GlobalBuffer const& buffer : buffers) {
    if (!buffer.contains(address, 1)) continue;
    std::snprintf(place.text, sizeof(place.text), "%s + %zu", buffer.name.c_str(),
                  size_t(uintptr_t(address) - buffer.begin));
    return place;
  }
  std::snprintf(place.text, sizeof(place.text), "%p", address);
  return place;
}

}  // namespace emu
