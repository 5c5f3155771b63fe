#include "sm80/registry.h"

#include "host/error.h"
#include "host/find_instance.h"

namespace fa2::sm80 {
namespace {

template <class Instance>
Instance const& find(KernelKey const& key) {
  return find_instance(instances<Instance>(), key);
}

// Of instances that serve a dtype whatever the rest.
template <class Instance>
Instance const& find(DType dtype) {
  for (Instance const* instance : instances<Instance>()) {
    if (instance->dtype == dtype) return *instance;
  }
  throw Error(message("no kernels for {}", to_string(dtype)));
}

}  // namespace

FwdInstance const& find_forward(KernelKey const& key) { return find<FwdInstance>(key); }

CombineInstance const& find_combine(DType dtype) { return find<CombineInstance>(dtype); }

AppendInstance const& find_append(DType dtype) { return find<AppendInstance>(dtype); }

BwdInstance const& find_backward(KernelKey const& key) { return find<BwdInstance>(key); }

BwdRowsInstance const& find_backward_rows(DType dtype) { return find<BwdRowsInstance>(dtype); }

BiasBwdInstance const& find_bias_backward(DType dtype) { return find<BiasBwdInstance>(dtype); }

BiasRowsInstance const& find_bias_rows(DType dtype) { return find<BiasRowsInstance>(dtype); }

}  // namespace fa2::sm80
