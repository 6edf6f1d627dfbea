/* The device that a thread uses, and the streams of devices. */
#include "hollow.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>

static __thread int current, bound, last_error;
static struct stream default_streams[MOST_DEVICES];
static int numbers;

__attribute__((constructor)) static void begin(void) {
    for (int device = 0; device < MOST_DEVICES; device++) default_streams[device].device = device;
}

int current_device(void) { return current; }
int has_context(void) { return bound; }

void make_current(int device) {
    current = device;
    bound = 1;
}

int next_number(void) { return __sync_add_and_fetch(&numbers, 1); }
void *new_handle(size_t size) { return calloc(1, size); }

struct stream *stream_of(const void *handle) {
    return (uintptr_t)handle <= 2 ? &default_streams[current] : (struct stream *)handle;
}

int failed(int error) {
    if (error) last_error = error;
    return error;
}

API cudaError_t cudaPeekAtLastError(void) { return last_error; }

API cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = 0;
    return error;
}
