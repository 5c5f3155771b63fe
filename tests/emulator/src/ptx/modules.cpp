#include "modules.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>

namespace emu::ptx {

namespace {

// Constructed before the first module, which is itself constructed before main.
std::vector<Module const*>& registered() {
  static std::vector<Module const*> list;
  return list;
}

bool is_library_file(std::string const& file) {
  for (char const* part : {"/cute/", "/cutlass/", "/targets/", "/cccl/", "/nvidia/"}) {
    if (file.find(part) != std::string::npos) return true;
  }
  return false;
}

std::string source_lines(Module const& module, s32 place, bool with_libraries) {
  std::string text;
  for (s32 at = place; at >= 0; at = module.places[at].caller) {
    std::string const file = module.files[module.places[at].file];
    if (!with_libraries && is_library_file(file)) continue;
    if (!text.empty()) text += " < ";
    text += file.substr(file.rfind('/') + 1) + ":" + std::to_string(module.places[at].line);
  }
  return text;
}

}  // namespace

Module::Module(char const* const* files, Place const* places, Site const* sites, u32 num_sites,
               Entry const* entries, u32 num_entries, Variable const* variables, u32 num_variables)
    : files(files),
      places(places),
      sites(sites),
      num_sites(num_sites),
      entries(entries),
      num_entries(num_entries),
      variables(variables),
      num_variables(num_variables) {
  registered().push_back(this);
}

Module::~Module() { std::erase(registered(), this); }

std::vector<Module const*> const& modules() { return registered(); }

Entry const* find_entry(std::string const& name) {
  for (Module const* m : modules()) {
    for (u32 i = 0; i < m->num_entries; ++i) {
      if (name == m->entries[i].name) return &m->entries[i];
    }
  }
  return nullptr;
}

Variable const* find_variable(std::string const& name) {
  for (Module const* m : modules()) {
    for (u32 i = 0; i < m->num_variables; ++i) {
      if (name == m->variables[i].name) return &m->variables[i];
    }
  }
  return nullptr;
}

std::string describe_site(void const* site) {
  auto const* const s = static_cast<Site const*>(site);
  for (Module const* m : modules()) {
    if (s < m->sites || s >= m->sites + m->num_sites) continue;
    std::string text = source_lines(*m, s->place, false);
    if (text.empty()) text = source_lines(*m, s->place, true);
    if (!text.empty()) text += " ";
    return text + "(PTX line " + std::to_string(s->ptx_line) + ")";
  }
  return "";
}

std::string readable_name(Entry const& entry) {
  int status = 0;
  char* const text = abi::__cxa_demangle(entry.name, nullptr, nullptr, &status);
  std::string const name = status == 0 ? text : entry.name;
  std::free(text);
  return name;
}

}  // namespace emu::ptx
