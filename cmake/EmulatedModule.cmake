# The CUDA kernels in the kernel emulator: a module for each family, for development and tests only.

set(FLASH_ATTN2_EMULATOR_ROUTE "host" CACHE STRING
    "What the emulator runs: host (kernels compiled as C++) or ptx (what nvcc makes of them)")
set_property(CACHE FLASH_ATTN2_EMULATOR_ROUTE PROPERTY STRINGS host ptx)
if(NOT FLASH_ATTN2_EMULATOR_ROUTE MATCHES "^(host|ptx)$")
  message(FATAL_ERROR "FLASH_ATTN2_EMULATOR_ROUTE is '${FLASH_ATTN2_EMULATOR_ROUTE}': allowed are "
                      "host and ptx")
endif()

include("${PROJECT_SOURCE_DIR}/csrc/instances.cmake")
include(TranslatedKernels)
fa2_cutlass_include_dir(FLASH_ATTN2_CUTLASS_INCLUDE_DIR)
fa2_cuda_include_dirs(FLASH_ATTN2_CUDA_INCLUDE_DIRS)
if(FLASH_ATTN2_EMULATOR_ROUTE STREQUAL "ptx")
  fa2_check_nvcc(nvcc_works)
  if(NOT nvcc_works)
    message(STATUS "emulated modules: not built; tests of them are skipped")
    return()
  endif()
endif()
add_subdirectory(tests/emulator)

if(FLASH_ATTN2_TESTS)
  add_test(NAME emulator_selftest COMMAND emulator_selftest)
  add_test(NAME ptx_selftest COMMAND ptx_selftest)
  if(TARGET emulator_programs)
    add_test(NAME emulator_programs COMMAND emulator_programs)
  else()
    message(STATUS "no nvcc that works: the emulator does not run whole CUDA programs in its tests")
  endif()
endif()

# What a module needs to run these .cu files in the emulator, into `module`, which exists.
function(fa2_link_emulated_kernels module)
  set(kernels fa2${module}_kernels)
  if(FLASH_ATTN2_EMULATOR_ROUTE STREQUAL "ptx")
    fa2_add_translated_kernels(${kernels} host_objects ${ARGN})
    target_sources(${module} PRIVATE ${host_objects})
  else()
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
    add_library(${kernels} OBJECT ${ARGN})
    # In this order: the emulator's headers come before csrc's of the same name.
    target_link_libraries(${kernels} PRIVATE fa2_emulated_kernels_flags fa2_settings)
  endif()
  target_link_libraries(${module} PRIVATE ${kernels} fa2_emulator)
endfunction()

# The table of kernels is host code like the rest. The emulator's reports name functions and lines.
function(fa2_add_emulated_module family)
  fa2_generate_instances(${family} "${PROJECT_BINARY_DIR}/instances/emulated" instances)
  set(kernels ${instances})
  list(FILTER kernels INCLUDE REGEX "\\.cu$")
  list(REMOVE_ITEM instances ${kernels})

  set(module _${family}_emulated)
  fa2_host_sources(${family} host_sources)
  fa2_add_module(${module} KEEP_SYMBOLS tests/emulator/module.cpp ${host_sources} ${instances})
  target_compile_definitions(${module} PRIVATE
    FA2_MODULE=${module} FA2_FAMILY=${family} FA2_FAMILY_HEADER="${family}/family.h")
  fa2_link_emulated_kernels(${module} ${kernels})
endfunction()

foreach(family IN LISTS FA2_CUDA_FAMILIES)
  fa2_add_emulated_module(${family})
endforeach()

# What no product module has, and is only compared with: FlashAttention-1's schedule and standard
# attention (csrc/sm80/<name>), as _<name>_emulated.
foreach(name IN ITEMS flash1 standard)
  fa2_add_module(_${name}_emulated KEEP_SYMBOLS tests/emulator/${name}_module.cpp)
  fa2_link_emulated_kernels(_${name}_emulated "${PROJECT_SOURCE_DIR}/csrc/sm80/${name}/${name}.cu")
endforeach()
