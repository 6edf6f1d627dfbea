/* What the files of the hollow device share. */
#ifndef HOLLOW_H
#define HOLLOW_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define API __attribute__((visibility("default")))
#define MOST_DEVICES 8

/* settings.c: what the environment or a test asked for. */
struct settings {
    int devices;           /* HOLLOW_DEVICES, 1 */
    int capability;        /* HOLLOW_SM, 90 */
    const char *name;      /* HOLLOW_NAME, else the one that fits the capability */
    size_t bytes;          /* HOLLOW_GIB, 80, of each device */
    size_t context_bytes;  /* HOLLOW_CONTEXT_MIB, 768: what CUDA itself takes */
    long allowed, refused; /* allocations: so many succeed, then so many do not, then all do; -1 for any number */
    size_t taken;          /* by other processes, of each device */
    int fill;              /* HOLLOW_FILL, 0: the byte that reads back where no copy has written */
    size_t conv_workspace; /* HOLLOW_CUDNN_WORKSPACE, 0 bytes a convolution */
    int refuse_pinning;    /* an error code for cudaHostRegister, 0 to allow it */
};
extern struct settings settings;

struct graph;

/* devices.c: which device a thread uses, and what a handle belongs to. */
struct stream {
    int device;
    int number; /* unique in the process; 0 is the default stream of each device */
    struct graph *capture;
};

struct event {
    int device;
    int number;
    int timed;
    int recorded;
    struct graph *capture;
};

/* What a capture has recorded. */
struct graph {
    int device;
    int launches;
    int nodes;
};

int current_device(void);
int has_context(void);        /* whether this thread has used a device yet */
void make_current(int device);
int next_number(void);
void *new_handle(size_t size);
struct stream *stream_of(const void *handle); /* the default stream of the current device for NULL and its aliases */
int failed(int error); /* remembered for cudaGetLastError; gives the error */

int device_attribute(int *value, int attribute); /* runtime.c */

/* memory.c: what lies where. */
enum place { PAGEABLE, PINNED, ON_DEVICE };
struct range {
    enum place place;
    int device; /* -1 for host memory */
};
struct range range_of(const void *address);
int allocate(void **address, size_t bytes);
void release(void *address);
/* Move bytes: `blocks` says whether the caller asked to wait for it. */
int transfer(void *to, const void *from, size_t bytes, struct stream *stream, int blocks);

/* log.c: what was called. The order is that of KINDS in calls.py. */
enum kind {
    KERNEL,       /* a kernel of PyTorch, of a package or of Triton */
    LIBRARY,      /* work by cuBLAS or cuDNN */
    GRAPH,        /* launch of a captured graph */
    TO_DEVICE,    /* a copy */
    TO_HOST,      /* a copy */
    ON_ONE,       /* a copy inside a device, or from device to device */
    ON_HOST,      /* a copy */
    SET,          /* memset */
    EVENT_RECORD, /* on a stream */
    EVENT_WAIT,   /* a stream waits for it */
    EVENT_SYNC,   /* the host waits */
    EVENT_QUERY,
    STREAM_SYNC, /* the host waits */
    STREAM_QUERY,
    DEVICE_SYNC, /* the host waits */
    MALLOC,
    FREE,
    HOST_REGISTER,
    HOST_UNREGISTER,
    HOST_ALLOC,
    HOST_FREE,
    FAULT, /* what a GPU would refuse */
    KINDS,
};

enum { BLOCKS = 1, FROM_PAGEABLE = 2, CAPTURED = 4 };

struct entry {
    int32_t kind, device, stream, flags;
    int64_t event; /* its number, or 0 */
    uint64_t bytes, address; /* where a copy writes */
    const char *name; /* of a kernel, a library's function or a fault */
};

void note(struct entry entry);
void note_call(enum kind kind, const struct stream *stream, const char *name);

/* launch.c: work for a device; both give 0 or the error that a GPU would. */
int launch_kernel(const struct stream *stream, int owner, const char *name);
int library_call(int device, const struct stream *stream, const char *name);
/* A call that waits for the device, which a capture forbids. */
int waits(enum kind kind, const struct stream *stream);
int fault(const struct stream *stream, int error, const char *what);
unsigned long launches(void); /* so far */

#endif
