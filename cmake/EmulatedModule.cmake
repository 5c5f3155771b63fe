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

# A module of what binds the kernels, and of these .cu files.
function(fa2_add_emulated_module module)
  set(sources ${ARGN})
  set(kernels ${ARGN})
  list(FILTER kernels INCLUDE REGEX "\\.cu$")
  list(REMOVE_ITEM sources ${kernels})
  fa2_add_module(${module} ${sources})
  fa2_add_translated_kernels(fa2${module}_kernels host_object ${kernels})
  target_sources(${module} PRIVATE "${host_object}")
  target_link_libraries(${module} PRIVATE fa2${module}_kernels fa2_emulator)
endfunction()

# The table of kernels is host code like the rest.
foreach(family IN LISTS FA2_CUDA_FAMILIES)
  fa2_generate_instances(${family} "${PROJECT_BINARY_DIR}/instances/emulated" instances)
  fa2_host_sources(${family} host_sources)
  set(module _${family}_emulated)
  fa2_add_emulated_module(${module} tests/emulator/modules/family_module.cpp
                          tests/emulator/modules/problem_buffers.cpp ${host_sources} ${instances})
  target_compile_definitions(${module} PRIVATE
    FA2_MODULE=${module} FA2_FAMILY=${family} FA2_FAMILY_HEADER="${family}/family.h")
endforeach()

# What no product module has, and is only compared with: FlashAttention-1's schedule and standard
# attention (csrc/sm80/<name>), as _<name>_emulated.
foreach(name IN ITEMS flash1 standard)
  fa2_add_emulated_module(_${name}_emulated tests/emulator/modules/${name}_module.cpp
                          "${PROJECT_SOURCE_DIR}/csrc/sm80/${name}/${name}.cu")
endforeach()
