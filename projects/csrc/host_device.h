// Functions marked HOST_DEVICE run in C++ and in CUDA kernels alike.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ inline
#else
#define HOST_DEVICE inline
#endif
