/* What of the CUDA runtime is about devices: which there are, what they are like, which one a thread uses. */
#include "hollow.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>

/* What differs between the GPUs that a compute capability stands for here. Figures: CUDA programming guide, "Technical
 * specifications per compute capability", and the data sheets. */
struct model {
    int capability;
    const char *name;
    int processors, threads;      /* of the device; resident per multiprocessor */
    int shared, shared_per_block; /* bytes per multiprocessor; per block, where asked for */
    int cache;                    /* bytes of L2 */
};

static const struct model models[] = {
    {80, "NVIDIA A100-SXM4-80GB", 108, 2048, 167936, 166912, 40 << 20},
    {89, "NVIDIA GeForce RTX 4090", 128, 1536, 102400, 101376, 72 << 20},
    {90, "NVIDIA H100 80GB HBM3", 132, 2048, 233472, 232448, 50 << 20},
    {100, "NVIDIA B200", 148, 2048, 233472, 232448, 126 << 20},
    {120, "NVIDIA GeForce RTX 5090", 170, 1536, 102400, 101376, 96 << 20},
};

static const struct model *model(void) {
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        if (models[i].capability == settings.capability) return &models[i];
    return &models[2];
}

#define VERSION 13000

API cudaError_t cudaGetDeviceCount(int *count) {
    *count = settings.devices;
    return settings.devices ? 0 : failed(cudaErrorNoDevice);
}

API cudaError_t cudaGetDevice(int *device) {
    *device = current_device();
    return 0;
}

API cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= settings.devices) return failed(cudaErrorInvalidDevice);
    make_current(device);
    return 0;
}

API cudaError_t cudaDriverGetVersion(int *version) {
    *version = VERSION;
    return 0;
}

API cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = VERSION;
    return 0;
}

API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    if (device < 0 || device >= settings.devices) return failed(cudaErrorInvalidDevice);
    const struct model *m = model();
    struct cudaDeviceProp p = {
        .totalGlobalMem = settings.bytes,
        .sharedMemPerBlock = 49152,
        .regsPerBlock = 65536,
        .warpSize = 32,
        .maxThreadsPerBlock = 1024,
        .maxThreadsDim = {1024, 1024, 64},
        .maxGridSize = {2147483647, 65535, 65535},
        .totalConstMem = 65536,
        .major = settings.capability / 10,
        .minor = settings.capability % 10,
        .textureAlignment = 512,
        .multiProcessorCount = m->processors,
        .canMapHostMemory = 1,
        .concurrentKernels = 1,
        .pciBusID = device + 1,
        .asyncEngineCount = 3,
        .unifiedAddressing = 1,
        .l2CacheSize = m->cache,
        .maxThreadsPerMultiProcessor = m->threads,
        .streamPrioritiesSupported = 1,
        .sharedMemPerMultiprocessor = m->shared,
        .regsPerMultiprocessor = 65536,
        .sharedMemPerBlockOptin = m->shared_per_block,
        .maxBlocksPerMultiProcessor = 32,
        .hostRegisterSupported = 1,
    };
    snprintf(p.name, sizeof p.name, "%s", settings.name ? settings.name : m->name);
    p.uuid.bytes[0] = (char)(device + 1);
    *found = p;
    return 0;
}

/* The driver's numbers of attributes are the same. */
int device_attribute(int *value, int attribute) {
    const struct model *m = model();
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxBlockDimX: *value = 1024; break;
    case cudaDevAttrMaxBlockDimY: *value = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *value = 64; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
    case cudaDevAttrMultiProcessorCount: *value = m->processors; break;
    case cudaDevAttrL2CacheSize: *value = m->cache; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = m->threads; break;
    case cudaDevAttrComputeCapabilityMajor: *value = settings.capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = settings.capability % 10; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = m->shared; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = m->shared_per_block; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = 32; break;
    default: *value = 0;
    }
    return 0;
}

API cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    if (device < 0 || device >= settings.devices) return failed(cudaErrorInvalidDevice);
    return device_attribute(value, attribute);
}

API cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) {
    snprintf(text, (size_t)length, "0000:%02x:00.0", device + 1);
    return 0;
}

API cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    (void)device, (void)peer;
    *can = 0;
    return 0;
}

API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) {
    (void)device;
    *pool = 0;
    return 0;
}

API const char *cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorHollow";
}

API const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorNotSupported: return "operation not supported";
    default: return "an error of the hollow device";
    }
}
