#pragma once

// The translated files that are linked in.

#include <string>
#include <vector>

#include "ptx/module.h"

namespace emu::ptx {

std::vector<Module const*> const& modules();

// nullptr where there is none of this mangled name.
Entry const* find_entry(std::string const& name);
Variable const* find_variable(std::string const& name);

// Source lines, innermost first, and the line in the PTX; "" for what is no site.
std::string describe_site(void const* site);

std::string readable_name(Entry const& entry);

}  // namespace emu::ptx
