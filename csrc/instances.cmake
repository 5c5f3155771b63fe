# The one table of kernels, by family. Everything that is not listed here is a run-time argument.
#
# A family F of CUDA kernels has FA2_F_SOURCES, its host code (plain C++), FA2_F_KINDS, its kinds of
# instances, and a macro fa2_F_instances(buckets) that calls fa2_add_instance for each of them.

set(FA2_CUDA_FAMILIES sm80)
set(FA2_HEAD_DIM_BUCKETS 32 64 96 128 192 256)

set(FA2_ELEMENT_TYPE_float16 cute::half_t)
set(FA2_ELEMENT_TYPE_bfloat16 cute::bfloat16_t)
set(FA2_DTYPE_float16 kFloat16)
set(FA2_DTYPE_bfloat16 kBFloat16)

# Host code that the CUDA families share.
set(FA2_HOST_SOURCES "${CMAKE_CURRENT_LIST_DIR}/host/device.cpp")

# Of a family: all the host code that its module needs, into `result`.
function(fa2_host_sources family result)
  set(sources ${FA2_${family}_SOURCES})
  list(TRANSFORM sources PREPEND "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${family}/")
  set(${result} ${FA2_HOST_SOURCES} ${sources} PARENT_SCOPE)
endfunction()

# --- sm80: Ampere and later -----------------------------------------------------------------------

set(FA2_sm80_SOURCES
    append/run.cpp backward/run.cpp forward/run.cpp plan.cpp plan_backward.cpp plan_forward.cpp
    registry.cpp)

# The C++ type of each kind, and the header in which <kind>_instance() makes one.
set(FA2_sm80_KINDS fwd split combine append bwd bwd_rows)
set(FA2_sm80_fwd_TYPE FwdInstance)
set(FA2_sm80_fwd_HEADER forward/instance.h)
set(FA2_sm80_split_TYPE FwdInstance)
set(FA2_sm80_split_HEADER split/instance.h)
set(FA2_sm80_combine_TYPE CombineInstance)
set(FA2_sm80_combine_HEADER split/combine_instance.h)
set(FA2_sm80_append_TYPE AppendInstance)
set(FA2_sm80_append_HEADER append/instance.h)
set(FA2_sm80_bwd_TYPE BwdInstance)
set(FA2_sm80_bwd_HEADER backward/instance.h)
set(FA2_sm80_bwd_rows_TYPE BwdRowsInstance)
set(FA2_sm80_bwd_rows_HEADER backward/rows_instance.h)

set(FA2_sm80_ELEMENTS float16 bfloat16)
set(FA2_sm80_VARIANTS Plain Modified Dropout)
set(FA2_sm80_SPLIT_VARIANTS Plain Modified)  # a KV cache knows no dropout
set(FA2_sm80_fwd_SMALL_BUCKETS 192 256)      # has_small_tile in sm80/tiles.h
set(FA2_sm80_bwd_SMALL_BUCKETS 128 192 256)  # has_small_bwd_tile in sm80/backward/tiles.h

macro(fa2_sm80_instances buckets)
  foreach(element IN LISTS FA2_sm80_ELEMENTS)
    set(element_arguments "${FA2_ELEMENT_TYPE_${element}}, DType::${FA2_DTYPE_${element}}")
    foreach(bucket IN ITEMS ${buckets})
      foreach(kind IN ITEMS fwd bwd)
        foreach(variant IN LISTS FA2_sm80_VARIANTS)
          fa2_add_instance(${kind} hd${bucket}_${element}_${variant}
            "${element_arguments}, ${bucket}, Variant::k${variant}, false")
          if(bucket IN_LIST FA2_sm80_${kind}_SMALL_BUCKETS)
            fa2_add_instance(${kind} hd${bucket}_${element}_${variant}_small
              "${element_arguments}, ${bucket}, Variant::k${variant}, true")
          endif()
        endforeach()
      endforeach()
      foreach(variant IN LISTS FA2_sm80_SPLIT_VARIANTS)
        fa2_add_instance(split hd${bucket}_${element}_${variant}_few
          "${element_arguments}, ${bucket}, Variant::k${variant}, true")
        fa2_add_instance(split hd${bucket}_${element}_${variant}_many
          "${element_arguments}, ${bucket}, Variant::k${variant}, false")
      endforeach()
    endforeach()
    foreach(kind IN ITEMS combine append bwd_rows)
      fa2_add_instance(${kind} ${element} "${element_arguments}")
    endforeach()
  endforeach()
endmacro()

# --- What makes sources of the table --------------------------------------------------------------

# Within fa2_generate_instances: writes the translation unit of one instance, called
# <kind>_<suffix>, which <kind>_instance<arguments>() makes.
function(fa2_add_instance kind suffix arguments)
  string(TOLOWER "${kind}_${suffix}" name)
  set(type ${FA2_${family}_${kind}_TYPE})
  set(header ${FA2_${family}_${kind}_HEADER})
  set(source "${directory}/${family}/${name}.cu")
  file(CONFIGURE OUTPUT "${source}" @ONLY CONTENT [[
#include "@family@/@header@"

namespace fa2::@family@ {
extern constexpr @type@ @name@ =
    @kind@_instance<@arguments@>();
}  // namespace fa2::@family@
]])
  set(sources ${sources} "${source}" PARENT_SCOPE)
  set(declarations "${declarations}extern ${type} const ${name};\n" PARENT_SCOPE)
  set(entries_${type} "${entries_${type}}      &${name},\n" PARENT_SCOPE)
endfunction()

# Writes the kernels of a family, and the tables of them that its registry looks into (one function
# for each type of instance), into `directory` and sets `result` to the sources.
# FLASH_ATTN2_HEAD_DIMS may restrict the buckets for development.
function(fa2_generate_instances family directory result)
  string(REPLACE "," ";" buckets "${FLASH_ATTN2_HEAD_DIMS}")
  if(NOT buckets)
    set(buckets ${FA2_HEAD_DIM_BUCKETS})
  endif()
  foreach(bucket IN LISTS buckets)
    if(NOT bucket IN_LIST FA2_HEAD_DIM_BUCKETS)
      message(FATAL_ERROR "FLASH_ATTN2_HEAD_DIMS has '${bucket}': buckets are "
                          "${FA2_HEAD_DIM_BUCKETS}")
    endif()
  endforeach()
  cmake_language(CALL fa2_${family}_instances "${buckets}")

  set(types "")
  foreach(kind IN LISTS FA2_${family}_KINDS)
    list(APPEND types ${FA2_${family}_${kind}_TYPE})
  endforeach()
  list(REMOVE_DUPLICATES types)
  set(tables "")
  foreach(type IN LISTS types)
    string(APPEND tables "
template <>
std::span<${type} const* const> instances() {
  static ${type} const* const table[] = {
${entries_${type}}  };
  return table;
}
")
  endforeach()
  set(source "${directory}/${family}/instances.cpp")
  file(CONFIGURE OUTPUT "${source}" @ONLY CONTENT [[
#include <span>

#include "@family@/registry.h"

namespace fa2::@family@ {

@declarations@@tables@
}  // namespace fa2::@family@
]])
  set(${result} ${sources} "${source}" PARENT_SCOPE)
endfunction()
