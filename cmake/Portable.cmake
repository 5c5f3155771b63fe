# FLASH_ATTN2_PORTABLE: modules that also run with older C libraries than the one here, for wheels
# that are given to others (make wheel; tools/wheel checks what they need).

# The functions that csrc/bindings/old_glibc.cpp takes in an older version.
set(fa2_old_functions exp2 log pow pthread_once)

# libstdc++ becomes a part of the module; libgcc_s stays shared, so that there is one unwinder.
function(fa2_make_portable module)
  if(FLASH_ATTN2_PORTABLE)
    set(old_glibc "${PROJECT_SOURCE_DIR}/csrc/bindings/old_glibc.cpp")
    # A section for each function, for --gc-sections.
    set_source_files_properties("${old_glibc}" PROPERTIES COMPILE_OPTIONS "-ffunction-sections")
    target_sources(${module} PRIVATE "${old_glibc}")
    list(TRANSFORM fa2_old_functions PREPEND "LINKER:--wrap=" OUTPUT_VARIABLE wraps)
    target_link_options(${module} PRIVATE -static-libstdc++ LINKER:--gc-sections ${wraps})
  endif()
endfunction()
