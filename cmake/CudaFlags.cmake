# How every CUDA source is compiled: by the build, beside what CMake itself gives a Release build in
# C++20, and with the same on their own as units (tools/nvcc).

set(FA2_NVCC_FLAGS --expt-relaxed-constexpr)
set(FA2_UNIT_FLAGS -O3 -DNDEBUG -std=c++20 ${FA2_NVCC_FLAGS})
