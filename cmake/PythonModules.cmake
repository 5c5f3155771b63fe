# Python extension modules: fa2_add_module(<name> <sources>...).

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

if(NOT pybind11_DIR)
  execute_process(COMMAND "${Python_EXECUTABLE}" -m pybind11 --cmakedir
                  OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE
                  COMMAND_ERROR_IS_FATAL ANY)
endif()
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 3.0 CONFIG REQUIRED)

# A module of the package, made of `sources` and of what all modules share.
function(fa2_add_module name)
  # NO_EXTRAS: no link-time optimisation, which would only reach the bindings themselves.
  pybind11_add_module(${name} NO_EXTRAS ${ARGN}
                      "${PROJECT_SOURCE_DIR}/csrc/bindings/params.cpp")
  if(NOT FLASH_ATTN2_SANITIZE)
    pybind11_strip(${name})
  endif()
  target_link_libraries(${name} PRIVATE fa2_settings fa2_hardening)
  if(FLASH_ATTN2_SANITIZE STREQUAL "thread")
    # Reference counts change under the GIL, which ThreadSanitizer does not see.
    target_compile_options(${name} PRIVATE -fno-sanitize=thread)
  endif()
  fa2_export_init_only(${name})
  fa2_make_portable(${name})
  set_target_properties(${name} PROPERTIES
                        LIBRARY_OUTPUT_DIRECTORY "${FLASH_ATTN2_OUTPUT_DIR}")
endfunction()
