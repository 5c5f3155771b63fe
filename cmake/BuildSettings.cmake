# Language level, warnings and the defaults that every target shares.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# What every target of the project compiles with: includes are relative to csrc/.
add_library(fa2_settings INTERFACE)
target_include_directories(fa2_settings INTERFACE "${PROJECT_SOURCE_DIR}/csrc")
target_compile_options(fa2_settings INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wno-unknown-pragmas;-Wno-missing-field-initializers>")
if(FLASH_ATTN2_WERROR)
  target_compile_options(fa2_settings INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-Werror>")
endif()
