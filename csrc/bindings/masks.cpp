#include "bindings/masks.h"

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "bindings/fields.h"
#include "bindings/params.h"
#include "masks/build.h"
#include "masks/count.h"
#include "masks/dense.h"
#include "masks/documents.h"
#include "masks/leaves.h"
#include "masks/operators.h"
#include "masks/unknown.h"

namespace py = pybind11;

namespace fa2::bindings {
namespace {

using masks::Lengths;
using masks::Node;
using masks::NodePtr;
using masks::Tile;

// Reads the dictionary of a pattern: its `kind`, and what patterns of this kind have. Addresses
// are integers.
class PatternReader {
 public:
  explicit PatternReader(Lengths const& lengths) : lengths_(lengths) {}

  masks::Pattern read(py::dict const& pattern) && {
    NodePtr root = node(pattern, 0);
    return {.root = std::move(root), .unknown = std::move(unknown_)};
  }

 private:
  static constexpr int kMaxDepth = 256;  // a pattern is gone through by recursion

  NodePtr node(py::dict const& pattern, int depth) {
    if (depth > kMaxDepth) {
      throw py::value_error("a pattern may be nested " + std::to_string(kMaxDepth) +
                            " deep, not more");
    }
    Fields fields(pattern);
    NodePtr result = of_kind(fields.get<"kind", std::string>(), fields, depth);
    fields.finish();
    return result;
  }

  NodePtr of_kind(std::string const& kind, Fields& fields, int depth) {
    if (kind == "not") return negation(node(fields.get<"operand", py::dict>(), depth + 1));
    if (kind == "and") return conjunction(operands(fields, depth));
    if (kind == "or") return disjunction(operands(fields, depth));
    if (kind == "window") return window_leaf(fields);
    if (kind == "keys") return keys(lengths_, ranges(fields));
    if (kind == "queries") return queries(lengths_, ranges(fields));
    if (kind == "random_blocks") return random_leaf(fields);
    if (kind == "documents") return documents_leaf(fields);
    if (kind == "blocks") return blocks_leaf(fields);
    if (kind == "dense") return dense_leaf(fields);
    if (kind == "unknown") return unknown_leaf();
    throw py::type_error("unknown kind of pattern: " + kind);
  }

  std::vector<NodePtr> operands(Fields& fields, int depth) {
    std::vector<NodePtr> nodes;
    for (py::handle const operand : fields.get<"operands", py::tuple>()) {
      nodes.push_back(node(py::cast<py::dict>(operand), depth + 1));
    }
    return nodes;
  }

  NodePtr window_leaf(Fields& fields) {
    auto const left = fields.get<"left", int64_t>();
    return masks::window(lengths_, bindings::window(left, fields.get<"right", int64_t>()));
  }

  static masks::Ranges ranges(Fields& fields) {
    return {.bounds = fields.pointer_or_null<"bounds", int32_t const>(),
            .offsets = fields.pointer_or_null<"offsets", int64_t const>(),
            .batch = fields.get<"batch", int32_t>()};
  }

  NodePtr random_leaf(Fields& fields) {
    return random_blocks(lengths_, {.per_row = fields.get<"per_row", int32_t>(),
                                    .block = fields.get<"block", int32_t>(),
                                    .seed = fields.get<"seed", uint64_t>(),
                                    .heads = fields.get<"heads", int32_t>()});
  }

  NodePtr documents_leaf(Fields& fields) {
    return documents(lengths_, {.starts = fields.pointer_or_null<"starts", int32_t const>(),
                                .ids = fields.pointer_or_null<"ids", int32_t const>(),
                                .offsets = fields.pointer_or_null<"offsets", int64_t const>(),
                                .batch = fields.get<"batch", int32_t>()});
  }

  NodePtr blocks_leaf(Fields& fields) {
    return blocks(lengths_, {.data = fields.pointer_or_null<"data", uint8_t const>(),
                             .batch = fields.get<"batch", int32_t>(),
                             .heads = fields.get<"heads", int32_t>(),
                             .block_q = fields.get<"block_q", int32_t>(),
                             .block_k = fields.get<"block_k", int32_t>()});
  }

  NodePtr dense_leaf(Fields& fields) {
    return dense(lengths_, {.data = fields.pointer_or_null<"data", uint8_t const>(),
                            .batch_stride = fields.get<"batch_stride", int64_t>(),
                            .head_stride = fields.get<"head_stride", int64_t>(),
                            .row_stride = fields.get<"row_stride", int64_t>(),
                            .col_stride = fields.get<"col_stride", int64_t>()});
  }

  NodePtr unknown_leaf() {
    auto leaf = std::make_unique<masks::UnknownLeaf>(lengths_);
    unknown_.push_back(leaf.get());
    return leaf;
  }

  Lengths lengths_;
  std::vector<masks::UnknownLeaf*> unknown_;
};

// Writable: PyTorch warns of others.
py::memoryview view(std::vector<int32_t>& indices) {
  return py::memoryview::from_memory(indices.data(),
                                     static_cast<py::ssize_t>(indices.size() * sizeof(int32_t)));
}

// Copies the lists to where allocate(num_entries, num_tiles) -> addresses of cols, tiles and bits
// says.
void hand_over(masks::Lists& lists, py::object const& allocate) {
  masks::Chunks<Tile>& tiles = lists.tiles.tiles();
  auto const addresses = py::cast<py::tuple>(allocate(lists.entries.size(), tiles.size()));
  auto address = [&](size_t i) { return addresses[i].cast<uintptr_t>(); };
  auto* cols = reinterpret_cast<int32_t*>(address(0));
  auto* numbers = reinterpret_cast<int32_t*>(address(1));
  auto* bits = reinterpret_cast<uint64_t*>(address(2));
  lists.entries.drain([&](masks::Lists::Entry const* entries, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      *cols++ = entries[i].col;
      *numbers++ = entries[i].tile;
    }
  });
  tiles.drain([&](Tile const* some, size_t count) {
    std::memcpy(bits, some, count * sizeof(Tile));
    bits += count * masks::kBlock;
  });
}

// What Python evaluates of a pattern: answer(leaf, batch, head, row, col, tiles) by memory views.
masks::Answer asking(py::object const& answer) {
  return [&answer](size_t leaf, masks::Question& question, Tile* tiles) {
    py::gil_scoped_acquire const acquire;
    auto const bytes = static_cast<py::ssize_t>(question.size() * sizeof(Tile));
    answer(leaf, view(question.batch), view(question.head), view(question.row), view(question.col),
           py::memoryview::from_memory(tiles, bytes));
  };
}

void build_mask(py::dict const& pattern, int32_t seqlen_q, int32_t seqlen_k, int32_t batch,
                int32_t heads, uintptr_t row_offsets, py::object const& allocate,
                py::object const& answer) {
  Lengths const lengths{.seqlen_q = seqlen_q, .seqlen_k = seqlen_k};
  masks::Pattern const tree = PatternReader(lengths).read(pattern);
  masks::Shape const shape{.lengths = lengths, .batch = batch, .heads = heads};
  masks::Lists lists;
  {
    py::gil_scoped_release const release;
    lists = masks::build(tree, shape, reinterpret_cast<int64_t*>(row_offsets), asking(answer));
  }
  hand_over(lists, allocate);
}

void count_pairs(py::dict const& pattern, int32_t seqlen_q, int32_t seqlen_k, int32_t batch,
                 int32_t heads, uintptr_t pairs, py::object const& answer) {
  Lengths const lengths{.seqlen_q = seqlen_q, .seqlen_k = seqlen_k};
  masks::Pattern const tree = PatternReader(lengths).read(pattern);
  masks::Shape const shape{.lengths = lengths, .batch = batch, .heads = heads};
  py::gil_scoped_release const release;
  masks::count_pairs(tree, shape, reinterpret_cast<int64_t*>(pairs), asking(answer));
}

}  // namespace

void define_masks(py::module_& m) {
  using py::arg;
  m.def("build_mask", &build_mask, arg("pattern"), arg("seqlen_q"), arg("seqlen_k"), arg("batch"),
        arg("heads"), arg("row_offsets"), arg("allocate"), arg("answer"),
        "Builds the lists of a block mask. The pattern is a dictionary (csrc/bindings/masks.cpp). "
        "row_offsets is the address of (batch, heads, blocks of queries + 1) int64. Once the rest "
        "is known, allocate(num_entries, num_tiles) gives the addresses of cols, tiles and bits. "
        "answer(i, batch, head, row, col, tiles) evaluates the i-th unknown part, from the left, "
        "in blocks whose indices are int32: it writes 64 int64 words for each. Memory views are "
        "valid during the call.");
  m.def("count_pairs", &count_pairs, arg("pattern"), arg("seqlen_q"), arg("seqlen_k"), arg("batch"),
        arg("heads"), arg("pairs"), arg("answer"),
        "Counts the visible pairs of each block of 64 queries, of all batches and heads together, "
        "into int64 (blocks,) at the address `pairs`. The rest is as for build_mask.");
}

}  // namespace fa2::bindings
