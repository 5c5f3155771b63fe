// Sums and text forms of the counters.

#include <sstream>

#include "emu/api.h"

namespace emu {

namespace {

Traffic sum(std::map<std::string, Traffic> const& by_buffer) {
  Traffic total;
  for (auto const& [name, t] : by_buffer) {
    total.bytes += t.bytes;
    total.requests += t.requests;
    total.sectors += t.sectors;
    total.distinct_sectors += t.distinct_sectors;
  }
  return total;
}

void put(std::map<std::string, double>& map, std::string const& prefix, Traffic const& t) {
  map[prefix + ".bytes"] = double(t.bytes);
  map[prefix + ".requests"] = double(t.requests);
  map[prefix + ".sectors"] = double(t.sectors);
  map[prefix + ".distinct_sectors"] = double(t.distinct_sectors);
}

void put(std::map<std::string, double>& map, std::string const& prefix, BankUse const& use) {
  map[prefix + ".requests"] = double(use.requests);
  map[prefix + ".wavefronts"] = double(use.wavefronts);
  map[prefix + ".ideal_wavefronts"] = double(use.ideal_wavefronts);
}

}  // namespace

Traffic Counters::total_reads() const { return sum(reads); }
Traffic Counters::total_writes() const { return sum(writes); }

std::map<std::string, double> Counters::to_map() const {
  std::map<std::string, double> map = {
      {"launches", double(launches)},
      {"ctas", double(ctas)},
      {"mma", double(mma)},
      {"mma_k8", double(mma_k8)},
      {"shuffles", double(shuffles)},
      {"votes", double(votes)},
      {"warp_syncs", double(warp_syncs)},
      {"barriers", double(barriers)},
      {"atomics", double(atomics)},
      {"cp_async_bytes", double(cp_async_bytes)},
      {"thread_switches", double(thread_switches)},
  };
  put(map, "ldmatrix", ldmatrix);
  put(map, "shared_loads", shared_loads);
  put(map, "shared_stores", shared_stores);
  put(map, "cp_async", cp_async);
  put(map, "read", total_reads());
  put(map, "write", total_writes());
  for (auto const& [name, t] : reads) put(map, "read." + name, t);
  for (auto const& [name, t] : writes) put(map, "write." + name, t);
  return map;
}

std::string Counters::to_json() const {
  std::ostringstream out;
  out.precision(17);
  char const* separator = "{";
  for (auto const& [name, value] : to_map()) {
    out << separator << '"' << name << "\": " << value;
    separator = ", ";
  }
  out << '}';
  return out.str();
}

}  // namespace emu
