# What makes faults in native code harder to exploit: fa2_hardening, for all that is shipped.
# tests/tools/test_hardening.py reads it back from the modules.

add_library(fa2_hardening INTERFACE)

# _FORTIFY_SOURCE needs optimisation, and may come from the compiler's own configuration.
set(flags -fstack-protector-strong)
if(NOT CMAKE_BUILD_TYPE STREQUAL "Debug" AND NOT FLASH_ATTN2_SANITIZE)
  list(APPEND flags -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
endif()
foreach(flag IN LISTS flags)
  target_compile_options(fa2_hardening INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:${flag}>" "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${flag}>")
endforeach()

if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  # Everything is bound at load time, and read-only from then on; no executable stack; code pages
  # are never written. `text` makes the linker refuse what would need that.
  target_link_options(fa2_hardening INTERFACE
    "LINKER:-z,relro,-z,now,-z,noexecstack,-z,text")
endif()

# A Python module exports what Python looks for and nothing else, instances of the standard
# library's templates included.
function(fa2_export_init_only module)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    set(script "${PROJECT_BINARY_DIR}/exports/${module}.map")
    file(CONFIGURE OUTPUT "${script}" CONTENT "{ global: PyInit_@module@; local: *; };\n" @ONLY)
    target_link_options(${module} PRIVATE "LINKER:--version-script=${script}")
    set_property(TARGET ${module} APPEND PROPERTY LINK_DEPENDS "${script}")
  endif()
endfunction()
