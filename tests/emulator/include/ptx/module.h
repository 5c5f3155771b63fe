#pragma once

// What a translated file tells the emulator of itself.

#include "ptx/types.h"

namespace emu::ptx {

// A line of a source file, and the place that it is inlined in, or -1.
struct Place {
  s32 file, line, caller;
};

// An instruction: its line in the PTX, and where it comes from, or -1.
struct Site {
  s32 ptx_line, place;
};

struct Param {
  u32 offset, bytes;
};

struct Entry {
  char const* name;                    // mangled
  void (*run)(void const* arguments);  // one thread
  Param const* params;
  u32 num_params;
  u32 shared_bytes;  // of its static variables
  u32 max_threads;   // of a CTA; 0: as many as the device can
};

struct Variable {
  char const* name;
  u8* data;
  u64 bytes;
  bool writable;
};

// The last of the entries and of the variables have no name.
class Module {
 public:
  Module(char const* const* files, Place const* places, Site const* sites, u32 num_sites,
         Entry const* entries, u32 num_entries, Variable const* variables, u32 num_variables);
  ~Module();
  Module(Module const&) = delete;
  Module& operator=(Module const&) = delete;

  char const* const* files;
  Place const* places;
  Site const* sites;
  u32 num_sites;
  Entry const* entries;
  u32 num_entries;
  Variable const* variables;
  u32 num_variables;
};

}  // namespace emu::ptx
