# The CUDA kernels in the kernel emulator: a module for each family, for development and tests.

include("${PROJECT_SOURCE_DIR}/csrc/instances.cmake")
include(TranslatedKernels)
fa2_check_nvcc(nvcc_works)
if(NOT nvcc_works)
  message(STATUS "emulated modules: not built; tests of them are skipped")
  return()
endif()
fa2_cutlass_include_dir(FLASH_ATTN2_CUTLASS_INCLUDE_DIR)
fa2_cuda_include_dirs(FLASH_ATTN2_CUDA_INCLUDE_DIRS)
add_subdirectory(tests/emulator)

if(FLASH_ATTN2_TESTS)
  add_test(NAME emulator_selftest COMMAND emulator_selftest)
  add_test(NAME ptx_selftest COMMAND ptx_selftest)
endif()

# A module of what binds the kernels, and of these .cu files, which are for ARCH (80 by default).
function(fa2_add_emulated_module module)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "ARCH" "")
  set(sources ${arg_UNPARSED_ARGUMENTS})
  set(kernels ${sources})
  list(FILTER kernels INCLUDE REGEX "\\.cu$")
  list(REMOVE_ITEM sources ${kernels})
  fa2_add_module(${module} ${sources})
  target_link_libraries(${module} PRIVATE fa2_emulator)
  if(NOT kernels)  # not all families have every bucket
    return()
  endif()
  fa2_add_translated_kernels(fa2${module}_kernels host_object ARCH "${arg_ARCH}" ${kernels})
  target_sources(${module} PRIVATE "${host_object}")
  target_link_libraries(${module} PRIVATE fa2${module}_kernels)
  set(FA2${module}_HOST_OBJECT "${host_object}" PARENT_SCOPE)
endfunction()

# The table of kernels is host code like the rest.
foreach(family IN LISTS FA2_CUDA_FAMILIES)
  fa2_generate_instances(${family} "${PROJECT_BINARY_DIR}/instances/emulated" instances)
  fa2_host_sources(${family} host_sources)
  set(module _${family}_emulated)
  fa2_add_emulated_module(${module} ARCH "${FA2_${family}_ARCH}"
                          tests/emulator/modules/family_module.cpp
                          tests/emulator/modules/problem_buffers.cpp ${host_sources} ${instances})
  set(sources_of_${family} ${host_sources} ${instances})
  list(FILTER sources_of_${family} EXCLUDE REGEX "\\.cu$")
endforeach()
target_compile_definitions(_sm80_emulated PRIVATE
  FA2_MODULE=_sm80_emulated FA2_FAMILY=sm80 FA2_FAMILY_HEADER="sm80/family.h" FA2_DEVICE="sm80")
# As devices of compute capability 9.0 have it: what sm90 does not serve, sm80 does.
target_compile_definitions(_sm90_emulated PRIVATE
  FA2_MODULE=_sm90_emulated FA2_FAMILY=cuda FA2_FAMILY_HEADER="cuda/family.h" FA2_DEVICE="sm90")
list(REMOVE_ITEM sources_of_sm80 ${FA2_HOST_SOURCES})
target_sources(_sm90_emulated PRIVATE csrc/cuda/family.cpp ${sources_of_sm80}
                                      "${FA2_sm80_emulated_HOST_OBJECT}")
target_link_libraries(_sm90_emulated PRIVATE fa2_sm80_emulated_kernels)

# What no product module has, and is only compared with: FlashAttention-1's schedule and standard
# attention (csrc/sm80/<name>), as _<name>_emulated.
foreach(name IN ITEMS flash1 standard)
  fa2_add_emulated_module(_${name}_emulated tests/emulator/modules/${name}_module.cpp
                          "${PROJECT_SOURCE_DIR}/csrc/sm80/${name}/${name}.cu")
endforeach()
