# The CUDA module, if FLASH_ATTN2_CUDA asks for it. Needs nvcc; a driver only to run.

string(TOLOWER "${FLASH_ATTN2_CUDA}" cuda_wanted)
if(cuda_wanted MATCHES "^(1|true|yes)$")
  set(cuda_wanted "on")
elseif(cuda_wanted MATCHES "^(0|false|no)$")
  set(cuda_wanted "off")
elseif(NOT cuda_wanted MATCHES "^(on|off|auto)$")
  message(FATAL_ERROR "FLASH_ATTN2_CUDA is '${FLASH_ATTN2_CUDA}': allowed are on, off and auto")
endif()
if(cuda_wanted STREQUAL "off")
  return()
endif()

# Whether there is something to run CUDA code on: a GPU, or a torch that was built for one.
function(fa2_machine_has_cuda result)
  execute_process(COMMAND "${Python_EXECUTABLE}" "${PROJECT_SOURCE_DIR}/tools/detect_cuda.py"
                  OUTPUT_VARIABLE reason OUTPUT_STRIP_TRAILING_WHITESPACE
                  COMMAND_ERROR_IS_FATAL ANY)
  set(${result} "${reason}" PARENT_SCOPE)
endfunction()

fa2_find_nvcc(nvcc)
if(cuda_wanted STREQUAL "auto")
  fa2_machine_has_cuda(reason)
  if(NOT nvcc OR NOT reason)
    message(STATUS "CUDA module: not built (nvcc: '${nvcc}', GPU or CUDA torch: '${reason}'); "
                   "FLASH_ATTN2_CUDA=on builds it all the same")
    return()
  endif()
elseif(NOT nvcc)
  fa2_fetch(nvcc)
  set(nvcc "${PROJECT_SOURCE_DIR}/third_party/cuda/bin/nvcc")
endif()
message(STATUS "CUDA module: built with ${nvcc}")

# Machine code for every architecture, all of it from PTX of the oldest, which also serves those to
# come: making PTX is most of what nvcc does, and the kernels use nothing newer.
string(REPLACE "," ";" cuda_archs "${FLASH_ATTN2_CUDA_ARCHS}")
foreach(arch IN LISTS cuda_archs)
  if(NOT arch MATCHES "^[0-9]+$")
    message(FATAL_ERROR "FLASH_ATTN2_CUDA_ARCHS has '${arch}': compute capabilities are numbers "
                        "such as 80 or 90, which brings the kernels of 90a, too")
  endif()
endforeach()
list(SORT cuda_archs COMPARE NATURAL)
list(JOIN cuda_archs "," cuda_archs_text)
list(GET cuda_archs 0 oldest_arch)
set(cuda_code ${cuda_archs})
list(TRANSFORM cuda_code PREPEND "sm_")
list(APPEND cuda_code "compute_${oldest_arch}")
list(TRANSFORM cuda_code PREPEND "-gencode=arch=compute_${oldest_arch},code=")

set(CMAKE_CUDA_COMPILER "${nvcc}")
set(CMAKE_CUDA_ARCHITECTURES OFF)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old: 12.4 or later is needed")
endif()

include("${PROJECT_SOURCE_DIR}/csrc/instances.cmake")
fa2_cutlass_include_dir(cutlass)
set(cuda_sources "${PROJECT_SOURCE_DIR}/csrc/cuda/family.cpp")
foreach(family IN LISTS FA2_CUDA_FAMILIES)
  # Kernels for one architecture have its machine code alone, where that is asked for.
  set(code ${cuda_code})
  set(arch "${FA2_${family}_ARCH}")
  if(arch)
    set(code "-gencode=arch=compute_${arch},code=sm_${arch}")
    string(REGEX MATCH "^[0-9]+" number "${arch}")
    if(NOT number IN_LIST cuda_archs)
      set(FA2_${family}_BUCKETS "")
    endif()
  endif()
  fa2_generate_instances(${family} "${PROJECT_BINARY_DIR}/instances/cuda" instances)
  fa2_host_sources(${family} host_sources)
  list(APPEND cuda_sources ${host_sources} ${instances})
  list(FILTER instances INCLUDE REGEX "\\.cu$")
  set_source_files_properties(${instances} PROPERTIES COMPILE_OPTIONS "${code}")
endforeach()
list(REMOVE_DUPLICATES cuda_sources)

# Apart from the bindings: they know nothing of Python, and are compiled once for all interpreters.
add_library(fa2_cuda OBJECT ${cuda_sources})
target_link_libraries(fa2_cuda PRIVATE fa2_settings fa2_hardening)
set_target_properties(fa2_cuda PROPERTIES CUDA_VISIBILITY_PRESET hidden)
target_compile_options(fa2_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${FA2_NVCC_FLAGS}>")

fa2_add_module(_cuda csrc/bindings/cuda_module.cpp)
target_link_libraries(_cuda PRIVATE fa2_cuda)
foreach(target IN ITEMS fa2_cuda _cuda)
  target_include_directories(${target} SYSTEM PRIVATE "${cutlass}"
                             ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_compile_definitions(${target} PRIVATE FA2_CUDA_ARCHS="${cuda_archs_text}")
endforeach()
