# Headers that the repository does not hold: found where the options say, else fetched into
# third_party/ (see tools/third_party.py).

function(fa2_fetch component)
  execute_process(COMMAND "${Python_EXECUTABLE}" "${PROJECT_SOURCE_DIR}/tools/third_party.py"
                          "${component}"
                  COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# Sets `result` to the include directory of CUTLASS.
function(fa2_cutlass_include_dir result)
  set(dir "${FLASH_ATTN2_CUTLASS_INCLUDE_DIR}")
  if(NOT dir)
    set(dir "${PROJECT_SOURCE_DIR}/third_party/cutlass/include")
    fa2_fetch(cutlass)
  endif()
  if(NOT EXISTS "${dir}/cute/tensor.hpp")
    message(FATAL_ERROR "No CUTLASS headers in ${dir}: set FLASH_ATTN2_CUTLASS_INCLUDE_DIR")
  endif()
  set(${result} "${dir}" PARENT_SCOPE)
endfunction()

# Sets `result` to the path of this machine's own nvcc, or to "" where there is none. One that was
# fetched does not make a machine one that builds CUDA modules unasked.
function(fa2_find_nvcc result)
  execute_process(COMMAND "${Python_EXECUTABLE}" -m tools.nvcc.toolchain
                  WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
                  OUTPUT_VARIABLE nvcc COMMAND_ERROR_IS_FATAL ANY)
  set(${result} "${nvcc}" PARENT_SCOPE)
endfunction()

# Sets `result` to the include directories of CUDA and of its C++ library.
function(fa2_cuda_include_dirs result)
  set(dirs ${FLASH_ATTN2_CUDA_INCLUDE_DIRS})
  if(NOT dirs)
    fa2_find_nvcc(nvcc)
    if(nvcc)
      file(REAL_PATH "${nvcc}" nvcc)
      cmake_path(GET nvcc PARENT_PATH bin)
      cmake_path(GET bin PARENT_PATH root)
    endif()
    if(NOT nvcc OR NOT EXISTS "${root}/include/cuda_runtime.h")
      fa2_fetch(cuda-headers)
      set(root "${PROJECT_SOURCE_DIR}/third_party/cuda")
    endif()
    set(dirs "${root}/include" "${root}/include/cccl")
  endif()
  set(${result} "${dirs}" PARENT_SCOPE)
endfunction()
