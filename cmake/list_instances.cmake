# Generates the CUDA translation units and lists them for tools/cuda_check:
#   cmake -DOUTPUT_DIR=<dir> -P cmake/list_instances.cmake
# writes <dir>/instances.txt with lines "flag <nvcc flag>", "group <path>;<path>...", of units that are
# compiled together, and, of families for one architecture, "arch <family> <architecture>".

cmake_minimum_required(VERSION 3.26)
get_filename_component(PROJECT_SOURCE_DIR "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
include("${CMAKE_CURRENT_LIST_DIR}/CudaFlags.cmake")
include("${PROJECT_SOURCE_DIR}/csrc/instances.cmake")

set(sources "")
set(lines "")
foreach(family IN LISTS FA2_CUDA_FAMILIES)
  if(FA2_${family}_ARCH)
    string(APPEND lines "arch ${family} ${FA2_${family}_ARCH}\n")
  endif()
  fa2_generate_instances(${family} "${OUTPUT_DIR}/instances" of_family)
  list(APPEND sources ${of_family})
endforeach()
# No part of a module, but of what must compile (see EmulatedModule.cmake).
foreach(name IN ITEMS flash1 standard)
  list(APPEND sources "${PROJECT_SOURCE_DIR}/csrc/sm80/${name}/${name}.cu")
endforeach()
foreach(flag IN LISTS FA2_UNIT_FLAGS)
  string(APPEND lines "flag ${flag}\n")
endforeach()
list(FILTER sources INCLUDE REGEX "\\.cu$")
fa2_group_sources(groups of_ ${sources})
foreach(group IN LISTS groups)
  string(APPEND lines "group ${of_${group}}\n")
endforeach()
file(WRITE "${OUTPUT_DIR}/instances.txt" "${lines}")
