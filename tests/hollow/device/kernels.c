/* Kernels that are compiled into PyTorch's libraries: their names, and their launches. */
#include "hollow.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

struct named {
    const void *function;
    const char *name;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct named *table; /* open addressing; its size is a power of two */
static size_t size, filled;

static struct named *slot_of(struct named *slots, size_t count, const void *function) {
    size_t place = ((uintptr_t)function >> 4) * 2654435761u & (count - 1);
    while (slots[place].function && slots[place].function != function) place = (place + 1) & (count - 1);
    return &slots[place];
}

static void grow(void) {
    size_t larger = size ? 2 * size : 65536;
    struct named *grown = calloc(larger, sizeof *grown);
    for (size_t i = 0; i < size; i++)
        if (table[i].function) *slot_of(grown, larger, table[i].function) = table[i];
    free(table);
    table = grown;
    size = larger;
}

static const char *name_of(const void *function) {
    return size ? slot_of(table, size, function)->name : 0;
}

API void **__cudaRegisterFatBinary(void *program) {
    (void)program;
    static void *handle;
    return &handle;
}

API void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
API void __cudaUnregisterFatBinary(void **handle) { (void)handle; }

API void __cudaRegisterFunction(void **handle, const char *function, char *device_function, const char *name, int threads,
                                void *thread, void *block, void *block_size, void *grid_size, int *warp_size) {
    (void)handle, (void)device_function, (void)threads, (void)thread, (void)block, (void)block_size, (void)grid_size;
    (void)warp_size;
    pthread_mutex_lock(&lock);
    if (2 * filled >= size) grow();
    *slot_of(table, size, function) = (struct named){function, name};
    filled++;
    pthread_mutex_unlock(&lock);
}

static __thread struct {
    dim3 grid, block;
    size_t shared;
    void *stream;
} configuration;

API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    configuration.grid = grid;
    configuration.block = block;
    configuration.shared = shared;
    configuration.stream = stream;
    return 0;
}

API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = configuration.grid;
    *block = configuration.block;
    *shared = configuration.shared;
    *(void **)stream = configuration.stream;
    return 0;
}

API cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return 0;
}

static cudaError_t launch(const void *function, cudaStream_t stream) {
    return failed(launch_kernel(stream_of(stream), -1, name_of(function)));
}

API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                                   cudaStream_t stream) {
    (void)grid, (void)block, (void)arguments, (void)shared;
    return launch(kernel, stream);
}

API cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                                 cudaStream_t stream) {
    (void)grid, (void)block, (void)arguments, (void)shared;
    return launch(function, stream);
}

API cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                                            cudaStream_t stream) {
    (void)grid, (void)block, (void)arguments, (void)shared;
    return launch(function, stream);
}

API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *options, const void *function, void **arguments) {
    (void)arguments;
    return launch(function, options->stream);
}

API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *function, int threads,
                                                                       size_t shared, unsigned flags) {
    (void)function, (void)threads, (void)shared, (void)flags;
    *count = 1;
    return 0;
}

API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const void *function, int threads, size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(count, function, threads, shared, 0);
}

API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    (void)function;
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 64;
    found->binaryVersion = found->ptxVersion = settings.capability;
    return 0;
}
