/* cuDNN: its graph API, with one engine for every graph, and of the older API batch norms; nothing is computed. */
#include "hollow.h"

#include <string.h>

/* cudnn_graph.h */
enum {
    ENGINEHEUR_RESULTS = 202,
    ENGINECFG_ENGINE = 300,
    EXECUTION_PLAN_WORKSPACE_SIZE = 402,
    ENGINE_GLOBAL_INDEX = 1301,
    EXECUTION_FAILED = 5000,
    NOT_SUPPORTED = 3000,
};

struct dnn {
    int device;
    struct stream *stream;
};

API int cudnnCreate(struct dnn **handle) {
    *handle = new_handle(sizeof **handle);
    (*handle)->device = current_device();
    (*handle)->stream = stream_of(0);
    return 0;
}

API int cudnnSetStream(struct dnn *handle, void *stream) {
    handle->stream = stream_of(stream);
    return 0;
}

API int cudnnGetStream(struct dnn *handle, void **stream) {
    *stream = handle->stream->number ? handle->stream : 0;
    return 0;
}

API int cudnnBackendCreateDescriptor(int kind, void **descriptor) {
    (void)kind;
    *descriptor = new_handle(sizeof(int));
    return 0;
}

API int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t wanted, int64_t *count, void *values) {
    (void)descriptor, (void)type;
    int64_t found = name == ENGINEHEUR_RESULTS || name == ENGINECFG_ENGINE || name == EXECUTION_PLAN_WORKSPACE_SIZE ||
                    name == ENGINE_GLOBAL_INDEX;
    if (values && wanted && name == EXECUTION_PLAN_WORKSPACE_SIZE) *(int64_t *)values = (int64_t)settings.conv_workspace;
    if (values && wanted && name == ENGINE_GLOBAL_INDEX) *(int64_t *)values = 0;
    if (count) *count = found;
    return 0;
}

API int cudnnBackendExecute(struct dnn *handle, void *plan, void *variables) {
    (void)plan, (void)variables;
    return library_call(handle->device, handle->stream, "cudnnBackendExecute") ? EXECUTION_FAILED : 0;
}

API int cudnnBatchNormalizationForwardInference(struct dnn *handle) {
    return library_call(handle->device, handle->stream, "cudnnBatchNormalizationForwardInference") ? EXECUTION_FAILED : 0;
}

API int cudnnCreateTensorDescriptor(void **descriptor) { return cudnnBackendCreateDescriptor(0, descriptor); }

API size_t cudnnGetVersion(void) { return 91900; }
API size_t cudnnGetCudartVersion(void) { return 13000; }

API const char *cudnnGetErrorString(int error) {
    return error == NOT_SUPPORTED ? "CUDNN_STATUS_NOT_SUPPORTED on the hollow device" : "hollow device";
}

API void cudnnGetLastErrorString(char *text, size_t size) {
    if (size) *text = 0;
}

#define SETTING(name) \
    API int name(void) { return 0; }
SETTING(cudnnDestroy)
SETTING(cudnnBackendInitialize)
SETTING(cudnnBackendFinalize)
SETTING(cudnnBackendSetAttribute)
SETTING(cudnnBackendDestroyDescriptor)
SETTING(cudnnBackendPopulateCudaGraph)
SETTING(cudnnSetTensorNdDescriptor)
SETTING(cudnnDestroyTensorDescriptor)
