# The one table of kernels. Everything that is not listed here is a run-time argument.

set(FA2_ELEMENTS float16 bfloat16)
set(FA2_ELEMENT_TYPE_float16 cute::half_t)
set(FA2_ELEMENT_TYPE_bfloat16 cute::bfloat16_t)
set(FA2_DTYPE_float16 kFloat16)
set(FA2_DTYPE_bfloat16 kBFloat16)
set(FA2_HEAD_DIM_BUCKETS 32 64 96 128 192 256)
set(FA2_VARIANTS Plain Modified Dropout)
set(FA2_SMALL_FWD_BUCKETS 192 256)  # has_small_tile in sm80/tiles.h
set(FA2_SMALL_BWD_BUCKETS 128 192 256)  # has_small_bwd_tile in sm80/bwd_tiles.h

# Host code of the CUDA families; plain C++.
set(FA2_HOST_SOURCES
    "${CMAKE_CURRENT_LIST_DIR}/host/device.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/host/plan.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/host/plan_backward.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/host/plan_forward.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/sm80/append.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/sm80/backward.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/sm80/forward.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/sm80/registry.cpp")

# Writes one translation unit into the caller's `directory` and appends it to its lists: `type` is
# the C++ type of the instance, `value` the expression that makes it, `header` where that is declared.
function(fa2_add_instance kind name header value)
  set(type_fwd FwdInstance)
  set(type_cache CacheInstance)
  set(type_bwd BwdInstance)
  set(type_bwd_rows BwdRowsInstance)
  set(type ${type_${kind}})
  set(source "${directory}/${name}.cu")
  file(CONFIGURE OUTPUT "${source}" @ONLY CONTENT [[
#include "sm80/@header@"

namespace fa2::sm80 {
extern constexpr @type@ @name@ =
    @value@;
}  // namespace fa2::sm80
]])
  set(sources ${sources} "${source}" PARENT_SCOPE)
  set(declarations "${declarations}extern ${type} const ${name};\n" PARENT_SCOPE)
  set(entries_${kind} "${entries_${kind}}      &${name},\n" PARENT_SCOPE)
endfunction()

# The main kernels of one bucket, element and direction (fwd, bwd), in all variants.
macro(fa2_add_kernels kind bucket element small_buckets)
  set(sizes false)
  if(${bucket} IN_LIST ${small_buckets})
    list(APPEND sizes true)
  endif()
  foreach(variant IN LISTS FA2_VARIANTS)
    foreach(small IN LISTS sizes)
      string(TOLOWER "${kind}_hd${bucket}_${element}_${variant}" name)
      if(small)
        string(APPEND name "_small")
      endif()
      fa2_add_instance(${kind} ${name} ${kind}_launch.h
        "${kind}_instance<${FA2_ELEMENT_TYPE_${element}}, DType::${FA2_DTYPE_${element}}, ${bucket}, Variant::k${variant}, ${small}>()")
    endforeach()
  endforeach()
endmacro()

# The split kernels of one bucket and element; a KV cache knows no dropout.
macro(fa2_add_split_kernels bucket element)
  foreach(variant Plain Modified)
    foreach(rows few many)
      set(is_few_few true)
      set(is_few_many false)
      string(TOLOWER "split_hd${bucket}_${element}_${variant}_${rows}" name)
      fa2_add_instance(fwd ${name} split_launch.h
        "split_instance<${FA2_ELEMENT_TYPE_${element}}, DType::${FA2_DTYPE_${element}}, ${bucket}, Variant::k${variant}, ${is_few_${rows}}>()")
    endforeach()
  endforeach()
endmacro()

# Writes the kernels and the tables of them into `directory` and sets `result` to the sources.
# FLASH_ATTN2_HEAD_DIMS may restrict the buckets for development.
function(fa2_generate_instances directory result)
  string(REPLACE "," ";" buckets "${FLASH_ATTN2_HEAD_DIMS}")
  if(NOT buckets)
    set(buckets ${FA2_HEAD_DIM_BUCKETS})
  endif()

  foreach(element IN LISTS FA2_ELEMENTS)
    foreach(bucket IN LISTS buckets)
      if(NOT bucket IN_LIST FA2_HEAD_DIM_BUCKETS)
        message(FATAL_ERROR "FLASH_ATTN2_HEAD_DIMS has '${bucket}': buckets are "
                            "${FA2_HEAD_DIM_BUCKETS}")
      endif()
      fa2_add_kernels(fwd ${bucket} ${element} FA2_SMALL_FWD_BUCKETS)
      fa2_add_kernels(bwd ${bucket} ${element} FA2_SMALL_BWD_BUCKETS)
      fa2_add_split_kernels(${bucket} ${element})
    endforeach()
    fa2_add_instance(cache cache_${element} cache_launch.h
      "cache_instance<${FA2_ELEMENT_TYPE_${element}}, DType::${FA2_DTYPE_${element}}>()")
    fa2_add_instance(bwd_rows bwd_rows_${element} bwd_rows_launch.h
      "bwd_rows_instance<${FA2_ELEMENT_TYPE_${element}}, DType::${FA2_DTYPE_${element}}>()")
  endforeach()

  set(table "${directory}/instances.cpp")
  file(CONFIGURE OUTPUT "${table}" @ONLY CONTENT [[
#include <span>

#include "sm80/registry.h"

namespace fa2::sm80 {

@declarations@
std::span<FwdInstance const* const> fwd_instances() {
  static FwdInstance const* const table[] = {
@entries_fwd@  };
  return table;
}

std::span<CacheInstance const* const> cache_instances() {
  static CacheInstance const* const table[] = {
@entries_cache@  };
  return table;
}

std::span<BwdInstance const* const> bwd_instances() {
  static BwdInstance const* const table[] = {
@entries_bwd@  };
  return table;
}

std::span<BwdRowsInstance const* const> bwd_rows_instances() {
  static BwdRowsInstance const* const table[] = {
@entries_bwd_rows@  };
  return table;
}

}  // namespace fa2::sm80
]])
  set(${result} ${sources} "${table}" PARENT_SCOPE)
endfunction()
