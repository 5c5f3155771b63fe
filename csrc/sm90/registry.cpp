#include "sm90/registry.h"

#include "host/find_instance.h"

namespace fa2::sm90 {

FwdInstance const& find_forward(KernelKey const& key) {
  return find_instance(instances<FwdInstance>(), key);
}

BwdInstance const& find_backward(BwdKey const& key) {
  return find_instance(instances<BwdInstance>(), key);
}

BwdRowsInstance const& find_backward_rows(DType dtype) {
  for (BwdRowsInstance const* instance : instances<BwdRowsInstance>()) {
    if (instance->dtype == dtype) return *instance;
  }
  throw Error(message("no backward kernels for {}", to_string(dtype)));
}

}  // namespace fa2::sm90
