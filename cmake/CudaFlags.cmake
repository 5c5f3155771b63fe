# How every CUDA source is compiled, by the build and by tools/cuda_check alike, beside what CMake
# itself gives a Release build in C++20: -O3 -DNDEBUG -std=c++20.

set(FA2_NVCC_FLAGS --expt-relaxed-constexpr)
