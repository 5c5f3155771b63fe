#pragma once

// Broken rules: the first few are collected, and end the launch.

#include <string>

namespace emu {

// The templates of the standard library that the emulator instantiates may be linked to the
// kernels' instrumented copies. Where the emulator uses them on a thread of the kernel, this keeps
// their accesses from being taken for the kernel's.
class RuntimeSection {
 public:
  RuntimeSection() : before_(active) { active = true; }
  ~RuntimeSection() { active = before_; }
  static bool active;

 private:
  bool before_;
};

#define EMU_FORMAT __attribute__((format(printf, 2, 3)))

// The current thread cannot go on. Leaves the launch; `site` is an address in the kernel's code.
[[noreturn]] EMU_FORMAT void fail(void const* site, char const* format, ...);

// A finding after which the kernel can run on.
EMU_FORMAT void note(void const* site, char const* format, ...);

#undef EMU_FORMAT

// A finding of the host's side, about no thread in particular.
void note_about_launch(std::string const& what);

bool anything_reported();
// All findings as text; forgets them.
std::string take_report();

// A kernel's name without return type, namespace, template and function arguments.
std::string kernel_name(void const* function);

// Source line where there is debug information, else function and offset.
std::string const& describe_site(void const* site);

}  // namespace emu
