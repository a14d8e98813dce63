// As much of CUDA C++ as a kernel without shared memory needs to be compiled as C++ and run thread after thread.

#pragma once

#define __global__

struct Dim3 {
    unsigned int x, y, z;
};

static Dim3 gridDim, blockDim, blockIdx, threadIdx;

static inline int atomicAdd(int* address, int value)
{
    const int before = *address;
    *address += value;
    return before;
}

template <class... Arguments>
void every_thread(void (*kernel)(Arguments...), unsigned int blocks, unsigned int threads, Arguments... arguments)
{
    gridDim = {blocks, 1, 1};
    blockDim = {threads, 1, 1};
    for (unsigned int block = 0; block < blocks; ++block) {
        for (unsigned int thread = 0; thread < threads; ++thread) {
            blockIdx = {block, 0, 0};
            threadIdx = {thread, 0, 0};
            kernel(arguments...);
        }
    }
}
