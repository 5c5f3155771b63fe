# FLASH_ATTN2_SANITIZE: every target compiled with a sanitizer. `make sanitize` runs the result.

set(sanitizers_address "address,undefined")
set(sanitizers_thread "thread")
if(FLASH_ATTN2_SANITIZE)
  if(NOT DEFINED sanitizers_${FLASH_ATTN2_SANITIZE})
    message(FATAL_ERROR "FLASH_ATTN2_SANITIZE is '${FLASH_ATTN2_SANITIZE}': allowed are address "
                        "and thread")
  endif()
  add_compile_options(-fsanitize=${sanitizers_${FLASH_ATTN2_SANITIZE}} -fno-sanitize-recover=all
                      -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${sanitizers_${FLASH_ATTN2_SANITIZE}})
endif()

# OpenMP for `target`. ThreadSanitizer gets a runtime that it sees into, inside of the module.
function(fa2_link_openmp target)
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  if(FLASH_ATTN2_SANITIZE STREQUAL "thread")
    target_compile_options(${target} PRIVATE ${OpenMP_CXX_FLAGS})
    target_sources(${target} PRIVATE "${PROJECT_SOURCE_DIR}/tests/sanitize/openmp_runtime.cpp")
  else()
    target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX)
  endif()
endfunction()
