#include "report.h"

#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <unordered_map>
#include <vector>

#include "machine.h"
#include "scheduler.h"

namespace emu {

namespace {

constexpr size_t kMaxFindings = 6;
constexpr size_t kMaxNameLength = 200;

struct Finding {
  std::string what;
  std::string who;
  void const* site;
};

std::vector<Finding> findings;

std::string triple(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

std::string triple(dim3 v) { return triple(uint3{v.x, v.y, v.z}); }

std::string current_thread() {
  if (current == nullptr) return "";
  return "CTA " + triple(current_cta().index) + " warp " + std::to_string(current_warp().index) +
         " lane " + std::to_string(current->lane) + " thread " + triple(current->thread_index);
}

std::string formatted(char const* format, va_list arguments) {
  char text[1024];
  std::vsnprintf(text, sizeof(text), format, arguments);
  return text;
}

std::string shortened(std::string const& name) {
  return name.size() <= kMaxNameLength ? name : name.substr(0, kMaxNameLength) + "...";
}

// The lines of `addr2line` for an address: function and place of it, then of what it is inlined in.
std::vector<std::string> source_lines(char const* module, uintptr_t offset) {
  char command[1024];
  std::snprintf(command, sizeof(command), "addr2line -C -f -i -e '%s' 0x%zx 2>/dev/null", module,
                size_t(offset));
  std::vector<std::string> lines;
  std::FILE* const pipe = popen(command, "r");
  if (pipe == nullptr) return lines;
  char line[4096];
  while (std::fgets(line, sizeof(line), pipe) != nullptr) {
    lines.emplace_back(line);
    lines.back().pop_back();
  }
  pclose(pipe);
  return lines;
}

bool is_library_line(std::string const& place) {
  for (char const* part : {"/cute/", "/cutlass/", "/include/c++/", "??", "/emu/"}) {
    if (place.find(part) != std::string::npos) return true;
  }
  return false;
}

struct CodePlace {
  std::string module;  // file
  uintptr_t offset;    // in it
  std::vector<std::string> lines;
};

CodePlace find_code(void const* address) {
  Dl_info info;
  if (dladdr(address, &info) == 0) return {};
  uintptr_t const offset = uintptr_t(address) - uintptr_t(info.dli_fbase);
  return {info.dli_fname, offset, source_lines(info.dli_fname, offset)};
}

// `site` is a return address: the call lies before it.
std::string look_up(void const* site) {
  if (site == nullptr) return "";
  CodePlace const code = find_code(static_cast<char const*>(site) - 1);
  std::string result;
  for (size_t i = 1; i < code.lines.size(); i += 2) {
    std::string const& place = code.lines[i];  // "path:line", perhaps " (discriminator n)"
    if (is_library_line(place)) continue;
    std::string const line = place.substr(0, place.find(' '));
    result += (result.empty() ? "" : " < ") + line.substr(line.rfind('/') + 1);
  }
  if (!result.empty()) return result;
  char offset[32];
  std::snprintf(offset, sizeof(offset), " + 0x%zx", size_t(code.offset));
  return code.module.substr(code.module.rfind('/') + 1) + offset;
}

// Of a function's first instruction.
std::string const& function_name(void const* function) {
  static std::unordered_map<void const*, std::string> known;
  auto const [entry, is_new] = known.try_emplace(function, "?");
  if (is_new) {
    CodePlace const code = find_code(function);
    if (!code.lines.empty()) entry->second = code.lines[code.lines.size() - 2];
  }
  return entry->second;
}

}  // namespace

std::string kernel_name(void const* function) {
  std::string const& full = function_name(function);
  std::string const unnamed = "(anonymous namespace)::";  // its bracket opens no arguments
  size_t const skipped = full.find(unnamed);
  size_t const from = skipped == std::string::npos ? 0 : skipped + unnamed.size();
  std::string const name = full.substr(from, full.find_first_of("<(", from) - from);
  return name.substr(name.find_last_of(" :") + 1);
}

std::string const& describe_site(void const* site) {
  static std::unordered_map<void const*, std::string> known;
  auto const [entry, is_new] = known.try_emplace(site);
  if (is_new) entry->second = look_up(site);
  return entry->second;
}

bool RuntimeSection::active = false;

void note(void const* site, char const* format, ...) {
  RuntimeSection const section;
  for (Finding const& f : findings) {
    if (f.site == site && site != nullptr) return;  // one per place says it all
  }
  va_list arguments;
  va_start(arguments, format);
  findings.push_back({formatted(format, arguments), current_thread(), site});
  va_end(arguments);
  if (findings.size() >= kMaxFindings) abandon_launch();
}

void fail(void const* site, char const* format, ...) {
  RuntimeSection const section;
  va_list arguments;
  va_start(arguments, format);
  findings.push_back({formatted(format, arguments), current_thread(), site});
  va_end(arguments);
  abandon_launch();
}

void note_about_launch(std::string const& what) { findings.push_back({what, "", nullptr}); }

bool anything_reported() { return !findings.empty(); }

std::string take_report() {
  std::string text = "kernel emulator: " + shortened(function_name(grid.kernel.function)) +
                     ", grid " + triple(grid.grid_dim) + " block " + triple(grid.block_dim) + ", " +
                     to_string(grid.options);
  for (Finding const& f : findings) {
    text += "\n  " + f.what;
    if (!f.who.empty()) text += "\n      by " + f.who;
    std::string const place = describe_site(f.site);
    if (!place.empty()) text += "\n      at " + place;
  }
  findings.clear();
  return text;
}

void unsupported(char const* what) {
  fail(__builtin_return_address(0), "the emulator does not have this operation: %s", what);
}

}  // namespace emu
