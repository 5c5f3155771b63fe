#pragma once

// The arithmetic of the tensor cores.

#include <cstdint>

#include "operations.h"

namespace emu {

// c += a * b of halves, of which `depth` count, 8 or 16. Rows of 32 bytes are aligned.
void multiply_tile(uint16_t const (*a)[16], uint16_t const (*b)[8], float (*c)[8], MmaType type,
                   int depth);

}  // namespace emu
