# The one table of kernels, by family. Everything that is not listed here is a run-time argument.
#
# A family F of CUDA kernels has FA2_F_SOURCES, its host code (plain C++), FA2_F_KINDS, its kinds of
# instances, FA2_F_ELEMENTS, their element types, and a macro fa2_F_instances(buckets) that calls
# fa2_add_instances for each of them, whatever the element. FA2_F_ARCH is the one architecture that
# its kernels are for; empty: any.

set(FA2_CUDA_FAMILIES sm80 sm90)
# Widths of heads: one of all, or one of queries and keys and one of values. kBuckets in sm80/tiles.h.
set(FA2_HEAD_DIM_BUCKETS 32 64 96 128 192/128 192 256 512 576/512)

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
    append/run.cpp backward/run.cpp bias_backward/run.cpp forward/run.cpp plan.cpp plan_backward.cpp
    plan_bias_backward.cpp plan_forward.cpp registry.cpp)

# The C++ type of each kind, and the header in which <kind>_instance() makes one.
set(FA2_sm80_KINDS fwd split combine append bwd bwd_rows bias_bwd bias_rows)
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
set(FA2_sm80_bias_bwd_TYPE BiasBwdInstance)
set(FA2_sm80_bias_bwd_HEADER bias_backward/instance.h)
set(FA2_sm80_bias_rows_TYPE BiasRowsInstance)
set(FA2_sm80_bias_rows_HEADER bias_backward/rows_instance.h)

set(FA2_sm80_ELEMENTS float16 bfloat16)
set(FA2_VARIANTS Plain Modified Dropout Codes Listed ListedDropout Latents)
set(FA2_sm80_VARIANTS Plain Modified Dropout Listed ListedDropout)
set(FA2_sm80_SPLIT_VARIANTS Plain Modified Codes)  # a KV cache knows no dropout
# Buckets, or variants of one, with a second tile.
set(FA2_sm80_fwd_SMALL_TILES 192 256 512)  # has_small_tile in sm80/tiles.h
set(FA2_sm80_bwd_SMALL_TILES 96_Plain 128 192/128 192 256 512)  # has_small_bwd_tile, backward/tiles.h
set(FA2_sm80_NOT_SMALL 512_Listed 512_ListedDropout)
# Of heads that only caches have. Modified kernels serve plain scores, too.
set(FA2_sm80_SPLIT_ONLY 576/512)  # is_split_only in sm80/tiles.h
set(FA2_sm80_SPLIT_ONLY_VARIANTS Modified Codes Latents)
set(FA2_sm80_SPLIT_LARGE_TILES Latents)  # has_large_tile

macro(fa2_sm80_instances buckets)
  foreach(bucket IN ITEMS ${buckets})
    string(REPLACE "/" "v" hd "hd${bucket}")
    string(REPLACE "/" ", " widths "Bucket(${bucket})")
    set(kinds fwd bwd)
    set(split_variants ${FA2_sm80_SPLIT_VARIANTS})
    if(bucket IN_LIST FA2_sm80_SPLIT_ONLY)
      set(kinds "")
      set(split_variants ${FA2_sm80_SPLIT_ONLY_VARIANTS})
    endif()
    foreach(kind IN LISTS kinds)
      foreach(variant IN LISTS FA2_sm80_VARIANTS)
        fa2_add_instances(${kind}_${hd}_${variant} ${kind}
                          ", ${widths}, Variant::k${variant}, false")
        if((bucket IN_LIST FA2_sm80_${kind}_SMALL_TILES AND
            NOT "${bucket}_${variant}" IN_LIST FA2_sm80_NOT_SMALL) OR
           "${bucket}_${variant}" IN_LIST FA2_sm80_${kind}_SMALL_TILES)
          fa2_add_instances(${kind}_${hd}_${variant}_small ${kind}
                            ", ${widths}, Variant::k${variant}, true")
        endif()
      endforeach()
    endforeach()
    foreach(variant IN LISTS split_variants)
      fa2_add_instances(split_${hd}_${variant}_few split
                        ", ${widths}, Variant::k${variant}, TileKind::kFewRows")
      fa2_add_instances(split_${hd}_${variant}_many split
                        ", ${widths}, Variant::k${variant}, TileKind::kManyRows")
      if(variant IN_LIST FA2_sm80_SPLIT_LARGE_TILES)
        fa2_add_instances(split_${hd}_${variant}_many_large split
                          ", ${widths}, Variant::k${variant}, TileKind::kManyRowsLarge")
      endif()
    endforeach()
  endforeach()
  foreach(kind IN ITEMS combine append bwd_rows bias_bwd bias_rows)
    fa2_add_instances(${kind} ${kind} "")
  endforeach()
endmacro()

# --- sm90: compute capability 9.0, beside sm80 -----------------------------------------------------

set(FA2_sm90_ARCH 90a)
set(FA2_sm90_SOURCES
    backward/run.cpp forward/run.cpp plan.cpp plan_backward.cpp registry.cpp tensor_map.cpp)
set(FA2_sm90_KINDS fwd bwd bwd_rows)
set(FA2_sm90_fwd_TYPE FwdInstance)
set(FA2_sm90_fwd_HEADER forward/instance.h)
set(FA2_sm90_bwd_TYPE BwdInstance)
set(FA2_sm90_bwd_HEADER backward/instance.h)
set(FA2_sm90_bwd_rows_TYPE BwdRowsInstance)
set(FA2_sm90_bwd_rows_HEADER backward/rows_instance.h)
set(FA2_sm90_ELEMENTS float16 bfloat16)
set(FA2_sm90_BUCKETS 64 96 128 192/128 192 256)  # kBuckets in sm90/tiles.h
set(FA2_sm90_VARIANTS Plain Modified Listed)
set(FA2_sm90_BWD_MODIFIED 64 96 128 192/128 192)  # has_modified_backward
set(FA2_sm90_SHORT_STEPS 128_Plain)  # has_short_steps

macro(fa2_sm90_instances buckets)
  foreach(bucket IN ITEMS ${buckets})
    if(NOT bucket IN_LIST FA2_sm90_BUCKETS)
      continue()
    endif()
    string(REPLACE "/" "v" hd "hd${bucket}")
    string(REPLACE "/" ", " widths "Bucket(${bucket})")
    foreach(variant IN LISTS FA2_sm90_VARIANTS)
      set(unit sm90_fwd_${hd}_${variant})
      fa2_add_instances(${unit} fwd ", ${widths}, Variant::k${variant}, StepKind::kLong")
      if("${bucket}_${variant}" IN_LIST FA2_sm90_SHORT_STEPS)
        fa2_add_instances(${unit}_short fwd ", ${widths}, Variant::k${variant}, StepKind::kShort")
      endif()
    endforeach()
    fa2_add_instances(sm90_bwd_${hd}_Plain bwd ", ${widths}, Variant::kPlain")
    if("${bucket}" IN_LIST FA2_sm90_BWD_MODIFIED)
      fa2_add_instances(sm90_bwd_${hd}_Modified bwd ", ${widths}, Variant::kModified")
      fa2_add_instances(sm90_bwd_${hd}_Listed bwd ", ${widths}, Variant::kListed")
    endif()
  endforeach()
  fa2_add_instances(sm90_bwd_rows bwd_rows "")
endmacro()

# --- What makes sources of the table --------------------------------------------------------------

# The name of the group of a unit: those of one kernel, whose variants have much in common.
function(fa2_group_of unit result)
  list(JOIN FA2_VARIANTS "|" variants)
  string(TOLOWER "_(${variants})(_|$)" variant)
  string(REGEX REPLACE "${variant}" "\\2" group "${unit}")
  set(${result} "${group}" PARENT_SCOPE)
endfunction()

# Sets `groups` to the names of the groups of sources, and <prefix><group> to the sources of each.
function(fa2_group_sources groups prefix)
  set(names "")
  foreach(source IN LISTS ARGN)
    cmake_path(GET source STEM unit)
    fa2_group_of(${unit} group)
    list(APPEND names "${group}")
    list(APPEND sources_of_${group} "${source}")
  endforeach()
  list(REMOVE_DUPLICATES names)
  foreach(group IN LISTS names)
    set(${prefix}${group} "${sources_of_${group}}" PARENT_SCOPE)
  endforeach()
  set(${groups} "${names}" PARENT_SCOPE)
endfunction()

# Within fa2_generate_instances: writes a translation unit with an instance of each element,
# <unit>_<element>, which <kind>_instance<element, its dtype, arguments>() makes. They share a unit
# since reading CuTe's headers takes a compiler about as long as one of them.
function(fa2_add_instances unit kind arguments)
  string(TOLOWER "${unit}" unit)
  set(type ${FA2_${family}_${kind}_TYPE})
  set(header ${FA2_${family}_${kind}_HEADER})
  set(definitions "")
  foreach(element IN LISTS FA2_${family}_ELEMENTS)
    set(name ${unit}_${element})
    set(element_arguments "${FA2_ELEMENT_TYPE_${element}}, DType::${FA2_DTYPE_${element}}")
    string(APPEND definitions "extern constexpr ${type} ${name} =
    ${kind}_instance<${element_arguments}${arguments}>();\n")
    string(APPEND declarations "extern ${type} const ${name};\n")
    string(APPEND entries_${type} "      &${name},\n")
  endforeach()
  set(source "${directory}/${family}/${unit}.cu")
  file(CONFIGURE OUTPUT "${source}" @ONLY CONTENT [[
#include "@family@/@header@"

namespace fa2::@family@ {
@definitions@}  // namespace fa2::@family@
]])
  set(sources ${sources} "${source}" PARENT_SCOPE)
  set(declarations "${declarations}" PARENT_SCOPE)
  set(entries_${type} "${entries_${type}}" PARENT_SCOPE)
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
  if(FLASH_ATTN2_FAULTS AND NOT family STREQUAL FLASH_ATTN2_FAULTS_FAMILY)
    set(buckets "")  # only what the family with faults needs of the other one
  endif()
  set(sources "")
  set(declarations "")
  cmake_language(CALL fa2_${family}_instances "${buckets}")

  set(types "")
  foreach(kind IN LISTS FA2_${family}_KINDS)
    list(APPEND types ${FA2_${family}_${kind}_TYPE})
  endforeach()
  list(REMOVE_DUPLICATES types)
  set(tables "")
  foreach(type IN LISTS types)
    if(NOT DEFINED entries_${type})  # no bucket that was chosen has any
      string(APPEND tables "
template <>
std::span<${type} const* const> instances() {
  return {};
}
")
      continue()
    endif()
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
