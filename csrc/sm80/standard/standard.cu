#include "sm80/launch.h"
#include "sm80/standard/product.h"
#include "sm80/standard/softmax.h"
#include "sm80/standard/standard.h"

namespace fa2::sm80::standard {
namespace {

template <Form kForm, int kTileCols>
void launch_product(ProductArgs const& args, cudaStream_t stream) {
  int const row_tiles = (args.rows + kTileRows - 1) / kTileRows;
  int const col_tiles = (args.cols + kTileCols - 1) / kTileCols;
  sm80::launch<Product<kForm, kTileCols>>(args, args.batch * args.heads * row_tiles * col_tiles,
                                          stream);
}

}  // namespace

// The factors of wide results lie by rows, those of narrow ones do not.
void product(Form form, ProductArgs const& args, cudaStream_t stream) {
  switch (form) {
    case Form::kByRows: return launch_product<Form::kByRows, 128>(args, stream);
    case Form::kByCols: return launch_product<Form::kByCols, 64>(args, stream);
    case Form::kTransposedA: return launch_product<Form::kTransposedA, 64>(args, stream);
  }
}

void softmax(SoftmaxArgs const& args, cudaStream_t stream) {
  sm80::launch<RowSoftmax>(args, args.batch * args.heads * args.seqlen, stream);
}

void softmax_grad(SoftmaxArgs const& args, cudaStream_t stream) {
  sm80::launch<RowSoftmaxGrad>(args, args.batch * args.heads * args.seqlen, stream);
}

}  // namespace fa2::sm80::standard
