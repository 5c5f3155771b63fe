#pragma once

// Words that the four lanes of a row exchange, to store more of them at a time.

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

// To global memory, at a multiple of 16 bytes. nvcc takes some assignments of them apart.
CUTE_DEVICE void store_words(void* to, uint32_t const (&words)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}

}  // namespace fa2
