/* The CUDA driver (libcuda.so.1): what PyTorch, AOTInductor's packages and Triton call of it. */
#define _GNU_SOURCE
#include "hollow.h"

#include <cuda.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* A context is its device's; a module is of the context that was current when it was loaded. */
static char contexts[MOST_DEVICES];

struct module {
    int device;
};

struct function {
    int device;
    char name[256];
};

static CUcontext context_of(int device) { return (CUcontext)&contexts[device]; }

API CUresult cuInit(unsigned flags) {
    (void)flags;
    return settings.devices ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

API CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

API CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY    ? "out of memory"
            : error == CUDA_ERROR_INVALID_HANDLE ? "invalid resource handle"
                                                 : "an error of the hollow device";
    return CUDA_SUCCESS;
}

API CUresult cuDeviceGetCount(int *count) {
    *count = settings.devices;
    return CUDA_SUCCESS;
}

API CUresult cuDeviceGet(CUdevice *device, int index) {
    if (index < 0 || index >= settings.devices) return CUDA_ERROR_INVALID_DEVICE;
    *device = index;
    return CUDA_SUCCESS;
}

API CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    (void)device;
    return (CUresult)device_attribute(value, (int)attribute);
}

API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    (void)device;
    *flags = 0;
    *active = 1;
    return CUDA_SUCCESS;
}

API CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = context_of(device);
    return CUDA_SUCCESS;
}

API CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = has_context() ? context_of(current_device()) : 0;
    return CUDA_SUCCESS;
}

API CUresult cuCtxSetCurrent(CUcontext context) {
    if (context) make_current((int)((char *)context - contexts));
    return CUDA_SUCCESS;
}

API CUresult cuCtxGetDevice(CUdevice *device) {
    *device = current_device();
    return CUDA_SUCCESS;
}

API CUresult cuCtxSynchronize(void) { return (CUresult)waits(DEVICE_SYNC, stream_of(0)); }

API CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
    (void)limit;
    *value = 0;
    return CUDA_SUCCESS;
}

API CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
    (void)limit, (void)value;
    return CUDA_SUCCESS;
}

API CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    (void)image;
    if (!has_context()) return CUDA_ERROR_INVALID_CONTEXT;
    struct module *loaded = new_handle(sizeof *loaded);
    loaded->device = current_device();
    *module = (CUmodule)loaded;
    return CUDA_SUCCESS;
}

API CUresult cuModuleLoad(CUmodule *module, const char *path) { return cuModuleLoadData(module, path); }

API CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, CUjit_option *options, void **values) {
    (void)count, (void)options, (void)values;
    return cuModuleLoadData(module, image);
}

API CUresult cuModuleUnload(CUmodule module) {
    free(module);
    return CUDA_SUCCESS;
}

/* Functions are kept for good, and so are their names in the log. */
API CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    struct function *found = new_handle(sizeof *found);
    found->device = ((struct module *)module)->device;
    strncpy(found->name, name, sizeof found->name - 1);
    *function = (CUfunction)found;
    return CUDA_SUCCESS;
}

API CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    (void)function;
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0;
    return CUDA_SUCCESS;
}

API CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    (void)function, (void)attribute, (void)value;
    return CUDA_SUCCESS;
}

API CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) {
    (void)function, (void)config;
    return CUDA_SUCCESS;
}

static CUresult launch(CUfunction function, CUstream stream) {
    const struct function *f = (struct function *)function;
    return (CUresult)launch_kernel(stream_of(stream), f->device, f->name);
}

API CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                            unsigned shared, CUstream stream, void **parameters, void **extra) {
    (void)bx, (void)by, (void)bz, (void)shared, (void)parameters, (void)extra;
    if (!gx || !gy || !gz) return CUDA_ERROR_INVALID_VALUE;
    return launch(function, stream);
}

API CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
    (void)parameters, (void)extra;
    return launch(function, config->hStream);
}

API CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                       unsigned bz, unsigned shared, CUstream stream, void **parameters) {
    (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)parameters;
    return launch(function, stream);
}

API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count, CUfunction function, int threads, size_t shared) {
    (void)function, (void)threads, (void)shared;
    *count = 1;
    return CUDA_SUCCESS;
}

API CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction function, const CUlaunchConfig *config) {
    (void)function, (void)config;
    *count = 1;
    return CUDA_SUCCESS;
}

API CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                    const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                    const cuuint32_t *element_strides, CUtensorMapInterleave interleave,
                                    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    (void)type, (void)rank, (void)address, (void)sizes, (void)strides, (void)box, (void)element_strides;
    (void)interleave, (void)swizzle, (void)promotion, (void)fill;
    memset(map, 0, sizeof *map);
    return CUDA_SUCCESS;
}

API CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address) {
    struct range range = range_of((const void *)address);
    if (range.place == PAGEABLE) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)value = address; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)value = range.device; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)value = range.place == ON_DEVICE ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
        break;
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext *)value = context_of(range.device < 0 ? 0 : range.device); break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

/* PyTorch and Triton look functions of the driver up by name; what is not here they are told is not there. */
static CUresult entry_point(const char *name, void **function) {
    Dl_info here;
    *function = 0;
    if (!dladdr((void *)cuInit, &here)) return CUDA_ERROR_NOT_FOUND;
    void *library = dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (library) *function = dlsym(library, name);
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

API CUresult cuGetProcAddress_v2(const char *name, void **function, int version, cuuint64_t flags,
                                 CUdriverProcAddressQueryResult *result) {
    (void)version, (void)flags;
    CUresult error = entry_point(name, function);
    if (result) *result = error ? CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND : CU_GET_PROC_ADDRESS_SUCCESS;
    return error;
}

API int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags,
                                         int *result) {
    (void)version, (void)flags;
    CUresult error = entry_point(name, function);
    if (result) *result = error ? 1 : 0; /* cudaDriverEntryPointSymbolNotFound */
    return 0;
}

API int cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags, int *result) {
    return cudaGetDriverEntryPointByVersion(name, function, 0, flags, result);
}
