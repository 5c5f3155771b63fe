# The one table of kernels. Everything that is not listed here is a run-time argument.

set(FA2_ELEMENTS float16 bfloat16)
set(FA2_ELEMENT_TYPE_float16 cute::half_t)
set(FA2_ELEMENT_TYPE_bfloat16 cute::bfloat16_t)
set(FA2_DTYPE_float16 kFloat16)
set(FA2_DTYPE_bfloat16 kBFloat16)
set(FA2_HEAD_DIM_BUCKETS 32 64 96 128 192 256)
set(FA2_SMALL_TILE_BUCKETS 192 256)  # has_small_tile in sm80/tiles.h
set(FA2_FWD_VARIANTS Plain Modified Dropout)

# Host code of the CUDA families; plain C++.
set(FA2_HOST_SOURCES
    "${CMAKE_CURRENT_LIST_DIR}/host/device.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/host/plan.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/sm80/forward.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/sm80/registry.cpp")

# Writes the translation unit of one kernel and appends it to the caller's lists.
function(fa2_add_fwd_instance directory bucket element variant small)
  string(TOLOWER "fwd_hd${bucket}_${element}_${variant}" name)
  if(small)
    string(APPEND name "_small")
  endif()
  set(type ${FA2_ELEMENT_TYPE_${element}})
  set(dtype ${FA2_DTYPE_${element}})
  set(source "${directory}/${name}.cu")
  file(CONFIGURE OUTPUT "${source}" @ONLY CONTENT [[
#include "sm80/launch.h"

namespace fa2::sm80 {
extern constexpr FwdInstance @name@ =
    fwd_instance<@type@, DType::@dtype@, @bucket@, FwdVariant::k@variant@, @small@>();
}  // namespace fa2::sm80
]])
  set(sources ${sources} "${source}" PARENT_SCOPE)
  set(declarations "${declarations}extern FwdInstance const ${name};\n" PARENT_SCOPE)
  set(entries "${entries}      &${name},\n" PARENT_SCOPE)
endfunction()

# Writes the kernels and the table of them into `directory` and sets `result` to the sources.
# FLASH_ATTN2_HEAD_DIMS may restrict the buckets for development.
function(fa2_generate_instances directory result)
  string(REPLACE "," ";" buckets "${FLASH_ATTN2_HEAD_DIMS}")
  if(NOT buckets)
    set(buckets ${FA2_HEAD_DIM_BUCKETS})
  endif()

  set(sources "")
  set(declarations "")
  set(entries "")
  foreach(bucket IN LISTS buckets)
    if(NOT bucket IN_LIST FA2_HEAD_DIM_BUCKETS)
      message(FATAL_ERROR "FLASH_ATTN2_HEAD_DIMS has '${bucket}': buckets are "
                          "${FA2_HEAD_DIM_BUCKETS}")
    endif()
    foreach(element IN LISTS FA2_ELEMENTS)
      foreach(variant IN LISTS FA2_FWD_VARIANTS)
        fa2_add_fwd_instance("${directory}" ${bucket} ${element} ${variant} false)
        if(bucket IN_LIST FA2_SMALL_TILE_BUCKETS)
          fa2_add_fwd_instance("${directory}" ${bucket} ${element} ${variant} true)
        endif()
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
