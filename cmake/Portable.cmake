# FLASH_ATTN2_PORTABLE: modules that also run with older C libraries than the one here, for wheels
# that are given to others (make wheel; tools/wheel checks what they need).

# libstdc++ becomes a part of the module; libgcc_s stays shared, so that there is one unwinder.
function(fa2_make_portable module)
  if(FLASH_ATTN2_PORTABLE)
    set(old_glibc "${PROJECT_SOURCE_DIR}/csrc/bindings/old_glibc.cpp")
    target_sources(${module} PRIVATE "${old_glibc}")
    file(STRINGS "${old_glibc}" wraps REGEX "^FA2_OLD[A-Z_]*\\(")
    list(TRANSFORM wraps REPLACE "^FA2_OLD[A-Z_]*\\(([a-z0-9_]+).*" "LINKER:--wrap=\\1")
    # The libraries in which older releases of glibc have some of these; newer ones have them, empty.
    target_link_options(${module} PRIVATE
      -static-libstdc++ LINKER:--gc-sections ${wraps}
      "LINKER:--push-state,--no-as-needed,-l:libpthread.so.0,-l:libdl.so.2,-l:librt.so.1,--pop-state")
  endif()
endfunction()
