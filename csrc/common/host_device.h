// One spelling for functions that both the CPU compilers and nvcc translate.
#pragma once

#ifdef __CUDACC__
#define ASEGNET_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ASEGNET_HOST_DEVICE inline __attribute__((always_inline))
#endif
