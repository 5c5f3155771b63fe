#pragma once

// Words that the four lanes of a row exchange.

#include <cute/config.hpp>

#include <cstdint>

namespace fa2 {

// Transposes 4 x 4 words: of each lane, word c goes to lane c of its four.
CUTE_DEVICE void transpose_in_quad(uint32_t (&words)[4], int lane) {
  CUTE_UNROLL
  for (int step = 1; step <= 2; step *= 2) {
    bool const upper = lane & step;
    CUTE_UNROLL
    for (int c = 0; c < 4; ++c) {
      if (c & step) continue;
      uint32_t const sent = upper ? words[c] : words[c + step];
      uint32_t const received = __shfl_xor_sync(0xffffffffu, sent, step);
      (upper ? words[c] : words[c + step]) = received;
    }
  }
}

}  // namespace fa2
