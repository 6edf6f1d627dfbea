/* Streams, events and captured graphs: counters, whose order the log keeps. */
#include "hollow.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>

#define MOST_STREAMS 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct stream *streams[MOST_STREAMS];
static int stream_count;

/* Streams are kept for good: somebody may hold a handle. */
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned flags, int priority) {
    (void)flags, (void)priority;
    make_current(current_device());
    struct stream *stream = new_handle(sizeof *stream);
    stream->device = current_device();
    stream->number = next_number();
    pthread_mutex_lock(&lock);
    if (stream_count < MOST_STREAMS) streams[stream_count++] = stream;
    pthread_mutex_unlock(&lock);
    *handle = (cudaStream_t)stream;
    return 0;
}

API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *handle, unsigned flags) {
    return cudaStreamCreateWithPriority(handle, flags, 0);
}

API cudaError_t cudaStreamCreate(cudaStream_t *handle) { return cudaStreamCreateWithPriority(handle, 0, 0); }

API cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    (void)handle;
    return 0;
}

API cudaError_t cudaStreamGetPriority(cudaStream_t handle, int *priority) {
    (void)handle;
    *priority = 0;
    return 0;
}

API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -1;
    return 0;
}

API cudaError_t cudaStreamSynchronize(cudaStream_t handle) { return failed(waits(STREAM_SYNC, stream_of(handle))); }
API cudaError_t cudaStreamQuery(cudaStream_t handle) { return failed(waits(STREAM_QUERY, stream_of(handle))); }

API cudaError_t cudaDeviceSynchronize(void) {
    make_current(current_device());
    for (int i = 0; i < stream_count; i++)
        if (streams[i]->capture && streams[i]->device == current_device()) return failed(waits(DEVICE_SYNC, streams[i]));
    return failed(waits(DEVICE_SYNC, stream_of(0)));
}

API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *handle, unsigned flags) {
    make_current(current_device());
    struct event *event = new_handle(sizeof *event);
    event->device = current_device();
    event->number = next_number();
    event->timed = !(flags & cudaEventDisableTiming);
    *handle = (cudaEvent_t)event;
    return 0;
}

API cudaError_t cudaEventCreate(cudaEvent_t *handle) { return cudaEventCreateWithFlags(handle, 0); }

API cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    free(handle);
    return 0;
}

static void note_event(enum kind kind, const struct stream *stream, const struct event *event) {
    note((struct entry){.kind = kind, .device = stream->device, .stream = stream->number, .event = event->number,
                        .flags = stream->capture ? CAPTURED : 0});
}

API cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream_handle, unsigned flags) {
    (void)flags;
    struct event *event = (struct event *)handle;
    struct stream *stream = stream_of(stream_handle);
    if (event->device != stream->device)
        return failed(fault(stream, cudaErrorInvalidResourceHandle, "an event recorded on a stream of another device"));
    event->recorded = 1;
    event->capture = stream->capture;
    note_event(EVENT_RECORD, stream, event);
    return 0;
}

API cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) { return cudaEventRecordWithFlags(handle, stream, 0); }

API cudaError_t cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t handle, unsigned flags) {
    (void)flags;
    struct event *event = (struct event *)handle;
    struct stream *stream = stream_of(stream_handle);
    if (event->capture) stream->capture = event->capture; /* the stream joins the capture */
    else if (stream->capture && event->recorded)
        return failed(fault(stream, cudaErrorStreamCaptureIsolation, "a captured stream waits for an event from outside"));
    note_event(EVENT_WAIT, stream, event);
    return 0;
}

API cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    struct event *event = (struct event *)handle;
    struct stream stream = {.device = event->device, .capture = event->capture};
    if (event->capture) return failed(waits(EVENT_SYNC, &stream));
    note_event(EVENT_SYNC, &stream, event);
    return 0;
}

API cudaError_t cudaEventQuery(cudaEvent_t handle) {
    struct event *event = (struct event *)handle;
    struct stream stream = {.device = event->device, .capture = event->capture};
    if (event->capture) return failed(waits(EVENT_QUERY, &stream));
    note_event(EVENT_QUERY, &stream, event);
    return 0;
}

/* What the host wants to be called when a stream has come so far: now. */
API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    (void)stream;
    function(data);
    return 0;
}

API cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *data, unsigned flags) {
    (void)flags;
    function(stream, cudaSuccess, data);
    return 0;
}

/* Every interval is a millisecond. */
API cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    const struct event *first = (struct event *)from, *second = (struct event *)to;
    struct stream stream = {.device = first->device};
    *milliseconds = 1;
    if (first->device != second->device || !first->timed || !second->timed || !first->recorded || !second->recorded)
        return failed(fault(&stream, cudaErrorInvalidResourceHandle, "a time between events that have none"));
    return 0;
}

API cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode) {
    (void)mode;
    struct stream *stream = stream_of(handle);
    if (stream->number == 0) return failed(fault(stream, cudaErrorStreamCaptureUnsupported, "a capture of the default stream"));
    struct graph *graph = new_handle(sizeof *graph);
    graph->device = stream->device;
    stream->capture = graph;
    return 0;
}

API cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *result) {
    struct graph *graph = stream_of(handle)->capture;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < stream_count; i++)
        if (streams[i]->capture == graph) streams[i]->capture = 0;
    pthread_mutex_unlock(&lock);
    *result = (cudaGraph_t)graph;
    return 0;
}

API cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *status) {
    *status = stream_of(handle)->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return 0;
}

API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                         cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                         size_t *count) {
    struct stream *stream = stream_of(handle);
    if (graph) *graph = (cudaGraph_t)stream->capture;
    if (id) *id = (unsigned long long)(uintptr_t)stream->capture;
    if (nodes) *nodes = 0;
    if (edges) *edges = 0;
    if (count) *count = 0;
    return cudaStreamIsCapturing(handle, status);
}

API cudaError_t cudaGraphInstantiate(cudaGraphExec_t *result, cudaGraph_t graph, unsigned long long flags) {
    (void)flags;
    struct graph *copy = new_handle(sizeof *copy);
    *copy = *(struct graph *)graph;
    *result = (cudaGraphExec_t)copy;
    return 0;
}

API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *result, cudaGraph_t graph, unsigned long long flags) {
    return cudaGraphInstantiate(result, graph, flags);
}

API cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream_handle) {
    const struct graph *graph = (struct graph *)handle;
    struct stream *stream = stream_of(stream_handle);
    if (graph->device != stream->device)
        return failed(fault(stream, cudaErrorInvalidResourceHandle, "a graph on a stream of another device"));
    note((struct entry){.kind = GRAPH, .device = stream->device, .stream = stream->number, .bytes = (uint64_t)graph->launches});
    return 0;
}

API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    if (!nodes) *count = (size_t)((struct graph *)graph)->nodes;
    return 0;
}

API cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    free(graph);
    return 0;
}

API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    free(graph);
    return 0;
}

API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    static __thread enum cudaStreamCaptureMode present = cudaStreamCaptureModeGlobal;
    enum cudaStreamCaptureMode before = present;
    present = *mode;
    *mode = before;
    return 0;
}
