#include "sm80/flash1/backward.h"
#include "sm80/flash1/flash1.h"
#include "sm80/flash1/forward.h"
#include "sm80/launch.h"

namespace fa2::sm80::flash1 {

void forward(Args const& args, cudaStream_t stream) {
  sm80::launch<Flash1Forward>(args, args.batch * args.heads, stream);
}

void backward(BwdArgs const& args, cudaStream_t stream) {
  sm80::launch<Flash1Backward>(args, args.forward.batch * args.forward.heads, stream);
}

}  // namespace fa2::sm80::flash1
