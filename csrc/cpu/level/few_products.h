#pragma once

// The products for a handful of queries, as in decoding. A tile whose lanes are queries would be
// mostly padding, and every entry of K and V would be broadcast for it. Here lanes are head dims in
// the products and keys in the softmax. Rows of K and V are read where they lie, each once from
// memory and long before its turn, since reading them is most of the work.

#include <type_traits>

#include "cpu/level/few_products_narrow.h"
#include "cpu/level/few_products_wide.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

template <class E>
using FewProducts = std::conditional_t<kTileVectors == 4, WideProducts<E>, NarrowProducts<E>>;

}  // namespace fa2::cpu::FA2_CPU_LEVEL
