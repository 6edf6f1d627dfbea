/* Kernels and library calls: they compute nothing, but where they would run is checked as a GPU checks it. */
#include "hollow.h"

#include <driver_types.h>

int fault(const struct stream *stream, int error, const char *what) {
    note_call(FAULT, stream, what);
    return error;
}

static unsigned long launched;

unsigned long launches(void) { return launched; }

static void count(const struct stream *stream) {
    __sync_add_and_fetch(&launched, 1);
    if (!stream->capture) return;
    stream->capture->launches++;
    stream->capture->nodes++;
}

int launch_kernel(const struct stream *stream, int owner, const char *name) {
    if (stream->device != current_device())
        return fault(stream, cudaErrorInvalidResourceHandle, "a kernel on a stream of another device than the current one");
    if (owner >= 0 && owner != stream->device)
        return fault(stream, cudaErrorInvalidResourceHandle, "a kernel that was loaded for another device");
    make_current(stream->device);
    count(stream);
    note_call(KERNEL, stream, name);
    return 0;
}

int library_call(int device, const struct stream *stream, const char *name) {
    if (device != current_device())
        return fault(stream, cudaErrorInvalidResourceHandle, "a library's handle of another device than the current one");
    if (device != stream->device)
        return fault(stream, cudaErrorInvalidResourceHandle, "a library's handle on a stream of another device");
    count(stream);
    note_call(LIBRARY, stream, name);
    return 0;
}

int waits(enum kind kind, const struct stream *stream) {
    if (stream->capture) return fault(stream, cudaErrorStreamCaptureUnsupported, "waiting for a stream that is being captured");
    note_call(kind, stream, 0);
    return 0;
}
