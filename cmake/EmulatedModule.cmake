# The CUDA kernels compiled as C++ for the kernel emulator: a module for development and tests only.

include("${PROJECT_SOURCE_DIR}/csrc/instances.cmake")
fa2_cutlass_include_dir(FLASH_ATTN2_CUTLASS_INCLUDE_DIR)
fa2_cuda_include_dirs(FLASH_ATTN2_CUDA_INCLUDE_DIRS)
add_subdirectory(tests/emulator)

if(FLASH_ATTN2_TESTS)
  add_test(NAME emulator_selftest COMMAND emulator_selftest)
endif()

# The kernels take the emulator's flags; the table of them is host code like the rest.
fa2_generate_instances("${PROJECT_BINARY_DIR}/instances/emulated" instances)
set(kernels ${instances})
list(FILTER kernels INCLUDE REGEX "\\.cu$")
list(REMOVE_ITEM instances ${kernels})
set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX)
add_library(fa2_emulated_kernels OBJECT ${kernels})
# In this order: the emulator's headers come before csrc's of the same name.
target_link_libraries(fa2_emulated_kernels PRIVATE fa2_emulated_kernels_flags fa2_settings)

# The emulator's reports name functions and lines.
fa2_add_module(_sm80_emulated KEEP_SYMBOLS
               tests/emulator/module.cpp ${FA2_HOST_SOURCES} ${instances})
target_link_libraries(_sm80_emulated PRIVATE fa2_emulated_kernels fa2_emulator)
