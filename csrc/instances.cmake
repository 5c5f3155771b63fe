# The one table of kernels. Everything that is not listed here is a run-time argument.

set(FA2_ELEMENTS float16 bfloat16)
set(FA2_ELEMENT_TYPE_float16 cute::half_t)
set(FA2_ELEMENT_TYPE_bfloat16 cute::bfloat16_t)
set(FA2_DTYPE_float16 kFloat16)
set(FA2_DTYPE_bfloat16 kBFloat16)
set(FA2_HEAD_DIM_BUCKETS 32 64 96 128 192 256)
set(FA2_FWD_VARIANTS Plain Modified Dropout)

# Host code of the CUDA families; plain C++.
set(FA2_HOST_SOURCES
    "${CMAKE_CURRENT_LIST_DIR}/host/plan.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/sm80/forward.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/sm80/registry.cpp")

# Writes one translation unit a kernel and the table of them into `directory`, and sets `result` to
# their paths. FLASH_ATTN2_HEAD_DIMS may restrict the buckets for development.
function(fa2_generate_instances directory result)
  set(buckets ${FLASH_ATTN2_HEAD_DIMS})
  string(REPLACE "," ";" buckets "${buckets}")
  if(NOT buckets)
    set(buckets ${FA2_HEAD_DIM_BUCKETS})
  endif()

  set(sources "")
  set(declarations "")
  set(entries "")
  foreach(bucket IN LISTS buckets)
    if(NOT bucket IN_LIST FA2_HEAD_DIM_BUCKETS)
      message(FATAL_ERROR "FLASH_ATTN2_HEAD_DIMS has ${bucket}; buckets are ${FA2_HEAD_DIM_BUCKETS}")
    endif()
    foreach(element IN LISTS FA2_ELEMENTS)
      foreach(variant IN LISTS FA2_FWD_VARIANTS)
        string(TOLOWER "fwd_hd${bucket}_${element}_${variant}" name)
        set(source "${directory}/${name}.cu")
        set(FA2_ELEMENT_TYPE ${FA2_ELEMENT_TYPE_${element}})
        set(FA2_DTYPE ${FA2_DTYPE_${element}})
        file(CONFIGURE OUTPUT "${source}" @ONLY CONTENT [[
#include "sm80/launch.h"

namespace fa2::sm80 {
extern FwdInstance const @name@;
constexpr FwdInstance @name@ = fwd_instance<@FA2_ELEMENT_TYPE@, DType::@FA2_DTYPE@, @bucket@,
                                            FwdVariant::k@variant@>();
}  // namespace fa2::sm80
]])
        list(APPEND sources "${source}")
        string(APPEND declarations "extern FwdInstance const ${name};\n")
        string(APPEND entries "    &${name},\n")
      endforeach()
    endforeach()
  endforeach()

  set(table "${directory}/fwd_instances.cpp")
  file(CONFIGURE OUTPUT "${table}" @ONLY CONTENT [[
#include <span>

#include "sm80/registry.h"

namespace fa2::sm80 {

@declarations@
std::span<FwdInstance const* const> fwd_instances() {
  static FwdInstance const* const table[] = {
@entries@  };
  return table;
}

}  // namespace fa2::sm80
]])
  set(${result} ${sources} "${table}" PARENT_SCOPE)
endfunction()
