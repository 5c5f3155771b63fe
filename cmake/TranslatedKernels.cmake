# CUDA units for the kernel emulator as nvcc sees them: its PTX, translated to C++, and an object of
# the host's code. PTX lies in build/nvcc, where `make cuda-check` finds it, too.

set(FLASH_ATTN2_FAULTS "" CACHE STRING
    "SEED,COUNT: kernels have faults, up to COUNT of a kind, one chosen at run time (make mutants)")
set(FLASH_ATTN2_FAULTS_FAMILY sm80 CACHE STRING "Of which family: sm80 or sm90")
# Those that get them.
set(FA2_sm80_UNITS_WITH_FAULTS
    fwd_hd64_plain fwd_hd64_listed bwd_hd64_plain split_hd64_plain_few combine append bwd_rows
    fwd_hd32_listed split_hd64_plain_many)
set(FA2_sm90_UNITS_WITH_FAULTS
    sm90_fwd_hd128_plain sm90_fwd_hd128_plain_short sm90_fwd_hd128_modified sm90_fwd_hd128_listed
    sm90_bwd_hd128_plain sm90_bwd_hd128_modified sm90_bwd_rows)

set(FA2_UNITS_DIR "${PROJECT_SOURCE_DIR}/build/nvcc")
# Why there are none, where nvcc cannot be had; tests skip with this reason.
set(FA2_NO_NVCC_FILE "${FA2_UNITS_DIR}/unavailable.txt")

# Sets `result` to whether nvcc works with this machine's host compiler; it is fetched if need be.
function(fa2_check_nvcc result)
  execute_process(COMMAND "${Python_EXECUTABLE}" -m tools.nvcc.emulated check
                          --reason "${FA2_NO_NVCC_FILE}"
                  WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
                  RESULT_VARIABLE status OUTPUT_VARIABLE words OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(status EQUAL 0)
    message(STATUS "nvcc for the emulator: ${words}")
    set(${result} TRUE PARENT_SCOPE)
  elseif(status EQUAL 3)
    set(${result} FALSE PARENT_SCOPE)
  else()
    message(FATAL_ERROR "tools.nvcc.emulated failed: ${status}")
  endif()
endfunction()

# What translations depend on beside their sources, into `result`.
function(fa2_translator result)
  file(GLOB_RECURSE tools CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tools/nvcc/*.py"
       "${PROJECT_SOURCE_DIR}/tools/ptx_emulator/*.py")
  if(FLASH_ATTN2_FAULTS)
    list(APPEND tools "${PROJECT_SOURCE_DIR}/tools/mutants/faults.py"
         "${PROJECT_SOURCE_DIR}/tools/mutants/rewrite.py")
  endif()
  set(${result} "${tools}" PARENT_SCOPE)
endfunction()

# For units, each a .cu file: sets `cpp` to the files of their translated kernels. Those of a group
# are compiled together. FLAGS are nvcc's; ARCH is the virtual architecture.
# Units of the same name in different folders are an error.
function(fa2_translate_units cpp)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "ARCH" "FLAGS")
  fa2_translator(tools)
  set(folder "${FA2_UNITS_DIR}/compute_${arg_ARCH}")
  set(translated "")
  fa2_group_sources(groups of_ ${arg_UNPARSED_ARGUMENTS})
  foreach(group IN LISTS groups)
    set(ptx "")
    set(of_group "")
    set(options "")
    foreach(source IN LISTS of_${group})
      cmake_path(GET source STEM unit)
      list(APPEND ptx "${folder}/${unit}/${unit}.ptx")
      list(FIND FA2_${FLASH_ATTN2_FAULTS_FAMILY}_UNITS_WITH_FAULTS "${unit}" index)
      if(FLASH_ATTN2_FAULTS AND index GREATER -1)
        math(EXPR first "20000 * ${index} + 1")
        list(APPEND options --faults ${unit} "${FLASH_ATTN2_FAULTS},${first}")
        list(APPEND of_group "${folder}/${unit}/${unit}.faults.ptx.cpp")
      else()
        list(APPEND of_group "${folder}/${unit}/${unit}.ptx.cpp")
      endif()
    endforeach()
    # Steps whose outputs stay the same are not followed by others: CMake has ninja look.
    set(depfile "${PROJECT_BINARY_DIR}/nvcc/compute_${arg_ARCH}/${group}.d")
    add_custom_command(
      OUTPUT ${ptx} ${of_group}
      COMMAND "${Python_EXECUTABLE}" -m tools.nvcc.emulated units ${of_${group}}
              --folder "${FA2_UNITS_DIR}" --arch ${arg_ARCH} --depfile "${depfile}" ${options}
              -- ${arg_FLAGS}
      DEPENDS ${of_${group}} ${tools}
      DEPFILE "${depfile}"
      WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
      COMMENT "nvcc ${group}"
      VERBATIM)
    list(APPEND translated ${of_group})
  endforeach()
  set(${cpp} "${translated}" PARENT_SCOPE)
endfunction()

# The same of programs, which are compiled with the host's code: sets `objects` to what that makes.
function(fa2_translate_programs cpp objects)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "ARCH" "FLAGS")
  fa2_translator(tools)
  set(translated "")
  set(of_host "")
  foreach(source IN LISTS arg_UNPARSED_ARGUMENTS)
    cmake_path(GET source STEM unit)
    set(made "${FA2_UNITS_DIR}/compute_${arg_ARCH}/${unit}/${unit}")
    add_custom_command(
      OUTPUT "${made}.o" "${made}.ptx" "${made}.ptx.cpp"
      COMMAND "${Python_EXECUTABLE}" -m tools.nvcc.emulated program "${source}"
              --folder "${FA2_UNITS_DIR}" --arch ${arg_ARCH} -- ${arg_FLAGS}
      DEPENDS "${source}" ${tools}
      DEPFILE "${made}.d"
      WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
      COMMENT "nvcc ${unit}"
      VERBATIM)
    list(APPEND translated "${made}.ptx.cpp")
    list(APPEND of_host "${made}.o")
  endforeach()
  set_source_files_properties(${of_host} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  set(${cpp} "${translated}" PARENT_SCOPE)
  set(${objects} "${of_host}" PARENT_SCOPE)
endfunction()

# An object library `target` of the translated kernels of instances for ARCH, 80 by default; sets
# `host_object` to what a module links with beside it.
function(fa2_add_translated_kernels target host_object)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "ARCH" "")
  if(NOT arg_ARCH)
    set(arg_ARCH 80)
  endif()
  set(units ${arg_UNPARSED_ARGUMENTS})
  set(flags ${FA2_UNIT_FLAGS} "-I${PROJECT_SOURCE_DIR}/csrc"
            "-isystem=${FLASH_ATTN2_CUTLASS_INCLUDE_DIR}")
  fa2_translate_units(cpp ${units} ARCH ${arg_ARCH} FLAGS ${flags})
  add_library(${target} OBJECT ${cpp})
  target_link_libraries(${target} PRIVATE fa2_translated_kernels_flags)
  target_precompile_headers(${target} PRIVATE <ptx/ptx.h>)
  # ccache keeps nothing that was compiled with such headers.
  set_target_properties(${target} PROPERTIES CXX_COMPILER_LAUNCHER "")
  if(FLASH_ATTN2_FAULTS)
    target_precompile_headers(${target} PRIVATE <emu/faults.h>)
  endif()

  # Which units there are is a matter of this build.
  set(folder "${PROJECT_BINARY_DIR}/nvcc")
  set(made "${folder}/compute_${arg_ARCH}/${target}/${target}")
  add_custom_command(
    OUTPUT "${made}.o"
    COMMAND "${Python_EXECUTABLE}" -m tools.nvcc.emulated host ${target} ${units}
            --folder "${folder}" --arch ${arg_ARCH} -- ${flags} -DFA2_HOST_ONLY -Xcompiler=-O1
    DEPENDS ${units}
    DEPFILE "${made}.d"
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
    COMMENT "nvcc ${target}, the host's code"
    VERBATIM)
  set_source_files_properties("${made}.o" PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  set(${host_object} "${made}.o" PARENT_SCOPE)
endfunction()
