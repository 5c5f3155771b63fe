#pragma once

#include <cstddef>

namespace fa2::cpu {

// Scratch memory of the calling thread, aligned to a page and kept from call to call. Its size
// follows from tile sizes, not from sequence lengths. Null if there is no memory.
void* thread_scratch(size_t bytes);

// The same for what the threads of a call share; it belongs to the thread that makes the call.
void* shared_scratch(size_t bytes);

}  // namespace fa2::cpu
