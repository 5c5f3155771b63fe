# The CUDA kernels compiled as C++ for the kernel emulator: a module for each family, for development
# and tests only.

include("${PROJECT_SOURCE_DIR}/csrc/instances.cmake")
fa2_cutlass_include_dir(FLASH_ATTN2_CUTLASS_INCLUDE_DIR)
fa2_cuda_include_dirs(FLASH_ATTN2_CUDA_INCLUDE_DIRS)
add_subdirectory(tests/emulator)

if(FLASH_ATTN2_TESTS)
  add_test(NAME emulator_selftest COMMAND emulator_selftest)
  add_test(NAME ptx_selftest COMMAND ptx_selftest)
  if(TARGET emulator_programs)
    add_test(NAME emulator_programs COMMAND emulator_programs)
  else()
    message(STATUS "no nvcc: the emulator does not run whole CUDA programs in its tests")
  endif()
endif()

# The kernels take the emulator's flags; the table of them is host code like the rest.
function(fa2_add_emulated_module family)
  fa2_generate_instances(${family} "${PROJECT_BINARY_DIR}/instances/emulated" instances)
  set(kernels ${instances})
  list(FILTER kernels INCLUDE REGEX "\\.cu$")
  list(REMOVE_ITEM instances ${kernels})
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX)
  add_library(fa2_${family}_emulated_kernels OBJECT ${kernels})
  # In this order: the emulator's headers come before csrc's of the same name.
  target_link_libraries(fa2_${family}_emulated_kernels
                        PRIVATE fa2_emulated_kernels_flags fa2_settings)

  set(module _${family}_emulated)
  fa2_host_sources(${family} host_sources)
  # The emulator's reports name functions and lines.
  fa2_add_module(${module} KEEP_SYMBOLS tests/emulator/module.cpp ${host_sources} ${instances})
  target_compile_definitions(${module} PRIVATE
    FA2_MODULE=${module} FA2_FAMILY=${family} FA2_FAMILY_HEADER="${family}/family.h")
  target_link_libraries(${module} PRIVATE fa2_${family}_emulated_kernels fa2_emulator)
endfunction()

foreach(family IN LISTS FA2_CUDA_FAMILIES)
  fa2_add_emulated_module(${family})
endforeach()

# What no product module has, and is only compared with: FlashAttention-1's schedule and standard
# attention (csrc/sm80/<name>), as _<name>_emulated.
foreach(name IN ITEMS flash1 standard)
  set(kernels "${PROJECT_SOURCE_DIR}/csrc/sm80/${name}/${name}.cu")
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX)
  add_library(fa2_${name}_emulated_kernels OBJECT ${kernels})
  target_link_libraries(fa2_${name}_emulated_kernels
                        PRIVATE fa2_emulated_kernels_flags fa2_settings)
  fa2_add_module(_${name}_emulated KEEP_SYMBOLS tests/emulator/${name}_module.cpp)
  target_link_libraries(_${name}_emulated PRIVATE fa2_${name}_emulated_kernels fa2_emulator)
endforeach()
