#include "sm90/registry.h"

#include "host/find_instance.h"

namespace fa2::sm90 {

FwdInstance const& find_forward(KernelKey const& key) {
  return find_instance(instances<FwdInstance>(), key);
}

}  // namespace fa2::sm90
