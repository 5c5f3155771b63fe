#include "bulk_box.h"

#include <algorithm>
#include <cstring>

namespace emu {

namespace {

// Calls move(place in shared memory, offset in the range, bytes) for what stays together.
template <class Move>
void for_chunks(uint32_t place, uint32_t offset, uint32_t bytes, uint32_t span_bytes, Move move) {
  for (uint32_t const end = offset + bytes; offset < end;) {
    uint32_t const left_of_chunk = kChunkBytes - offset % kChunkBytes;
    uint32_t const count = std::min(end - offset, left_of_chunk);
    move(swizzled(place + offset, span_bytes), offset, count);
    offset += count;
  }
}

}  // namespace

void BulkBox::load_to(char* shared, uint32_t place) const {
  std::memset(shared + place, 0, bytes);
  for (BulkPiece const& piece : pieces) {
    for_chunks(place, piece.offset, piece.bytes, span_bytes,
               [&](uint32_t to, uint32_t offset, uint32_t count) {
                 std::memcpy(shared + to, piece.global + (offset - piece.offset), count);
               });
  }
}

std::vector<char> BulkBox::read_from(char const* shared, uint32_t place) const {
  std::vector<char> data(bytes);
  for_chunks(place, 0, bytes, span_bytes, [&](uint32_t from, uint32_t offset, uint32_t count) {
    std::memcpy(data.data() + offset, shared + from, count);
  });
  return data;
}

}  // namespace emu
