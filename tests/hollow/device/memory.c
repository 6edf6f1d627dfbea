/* Memory of the devices: address space that is never touched, except by small copies.
 *
 * Bulk data that goes to a device is dropped. What is small is kept, so that numbers which the host wrote read back. A
 * kernel writes nothing, so a read would find what lay there before: it finds settings.fill instead, except where a copy of
 * the same size went to the same address and no kernel was launched since. Where that is 0, what is large is not read at all: the
 * host's memory stays as it is, and its pages, where nobody has used them, untouched too.
 */
#include "hollow.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SMALL ((size_t)65536)

struct piece {
    size_t offset, bytes;
    unsigned long launches; /* before it was written */
};

struct block {
    char *address;
    size_t bytes;
    struct range range;
    struct piece *written; /* by small copies */
    size_t count, capacity;
    struct block *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks;
static size_t used[MOST_DEVICES], peak[MOST_DEVICES];

static void add(char *address, size_t bytes, struct range range) {
    struct block *block = malloc(sizeof *block);
    *block = (struct block){.address = address, .bytes = bytes, .range = range, .next = blocks};
    blocks = block;
}

/* Forget the block that begins at an address; its size, 0 where there is none. */
static struct block forget(const void *address) {
    struct block gone = {0};
    for (struct block **link = &blocks; *link; link = &(*link)->next) {
        if ((*link)->address != address) continue;
        struct block *found = *link;
        gone = *found;
        *link = found->next;
        free(found->written);
        free(found);
        break;
    }
    return gone;
}

static struct block *block_of(const void *address) {
    struct block *block = blocks;
    while (block && !((const char *)address >= block->address && (const char *)address < block->address + block->bytes))
        block = block->next;
    return block;
}

struct range range_of(const void *address) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of(address);
    struct range range = block ? block->range : (struct range){PAGEABLE, -1};
    pthread_mutex_unlock(&lock);
    return range;
}

static struct piece *piece_at(struct block *block, size_t offset) {
    for (size_t i = block->count; i-- > 0;)
        if (block->written[i].offset == offset) return &block->written[i];
    return 0;
}

/* Remember that a small copy has written here, or with 0 bytes, that what is here is not known. */
static void set_written(const void *address, size_t bytes) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of(address);
    size_t offset = block ? (size_t)((const char *)address - block->address) : 0;
    struct piece *piece = block ? piece_at(block, offset) : 0;
    if (block && !piece && bytes) {
        if (block->count == block->capacity) {
            block->capacity = block->capacity ? 2 * block->capacity : 16;
            block->written = realloc(block->written, block->capacity * sizeof *block->written);
        }
        piece = &block->written[block->count++];
        piece->offset = offset;
    }
    if (piece) *piece = (struct piece){offset, bytes, launches()};
    pthread_mutex_unlock(&lock);
}

static int was_written(const void *address, size_t bytes) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of(address);
    struct piece *piece = block ? piece_at(block, (size_t)((const char *)address - block->address)) : 0;
    int found = piece && piece->bytes == bytes && piece->launches == launches();
    pthread_mutex_unlock(&lock);
    return found;
}

static size_t room(void) {
    size_t others = settings.context_bytes + settings.taken;
    return settings.bytes > others ? settings.bytes - others : 0;
}

/* Whether the next allocation is none of those that a test wants refused. */
static int is_allowed(void) {
    if (settings.allowed > 0) settings.allowed--;
    else if (settings.allowed == 0 && settings.refused-- > 0) return 0;
    else settings.allowed = -1;
    return 1;
}

/* On the current device. */
int allocate(void **address, size_t bytes) {
    int device = current_device();
    make_current(device);
    pthread_mutex_lock(&lock);
    int fits = used[device] + bytes <= room() && is_allowed();
    void *found = fits ? mmap(0, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
                       : MAP_FAILED;
    if (found != MAP_FAILED) {
        add(found, bytes, (struct range){ON_DEVICE, device});
        used[device] += bytes;
        if (used[device] > peak[device]) peak[device] = used[device];
    }
    pthread_mutex_unlock(&lock);
    if (found == MAP_FAILED) return cudaErrorMemoryAllocation;
    note((struct entry){.kind = MALLOC, .device = device, .bytes = bytes});
    *address = found;
    return 0;
}

void release(void *address) {
    pthread_mutex_lock(&lock);
    struct block gone = forget(address);
    if (gone.address) {
        used[gone.range.device] -= gone.bytes;
        munmap(gone.address, gone.bytes ? gone.bytes : 1);
    }
    pthread_mutex_unlock(&lock);
    note((struct entry){.kind = FREE, .device = gone.address ? gone.range.device : current_device(), .bytes = gone.bytes});
}

static void move(void *to, const void *from, size_t bytes, struct range target, struct range source) {
    int into = target.place == ON_DEVICE, out = source.place == ON_DEVICE;
    int known = !out || (bytes <= SMALL && was_written(from, bytes));
    if (into) set_written(to, known && bytes <= SMALL ? bytes : 0);
    if (out && !into && !known) {
        if (bytes <= SMALL || settings.fill) memset(to, settings.fill, bytes);
    } else if (bytes <= SMALL || !(into || out)) {
        memmove(to, from, bytes);
    }
}

int transfer(void *to, const void *from, size_t bytes, struct stream *stream, int blocks_host) {
    struct range target = range_of(to), source = range_of(from);
    int to_device = target.place == ON_DEVICE, from_device = source.place == ON_DEVICE;
    enum kind kind = to_device ? (from_device ? ON_ONE : TO_DEVICE) : from_device ? TO_HOST : ON_HOST;
    int pageable = (!to_device && target.place == PAGEABLE) || (!from_device && source.place == PAGEABLE);
    if (stream->capture && (blocks_host || (pageable && kind != ON_ONE)))
        return fault(stream, cudaErrorStreamCaptureUnsupported, "a copy that blocks, while a stream is being captured");
    int flags = (blocks_host ? BLOCKS : 0) | (pageable && kind != ON_ONE ? FROM_PAGEABLE : 0);
    if (stream->capture) stream->capture->nodes++;
    note((struct entry){.kind = kind, .device = stream->device, .stream = stream->number, .bytes = bytes,
                        .address = (uintptr_t)to, .flags = flags | (stream->capture ? CAPTURED : 0)});
    move(to, from, bytes, target, source);
    return 0;
}

API size_t hollow_used(int device) { return device >= 0 && device < MOST_DEVICES ? used[device] : 0; }
API size_t hollow_peak(int device) { return device >= 0 && device < MOST_DEVICES ? peak[device] : 0; }
API void hollow_reset_peaks(void) { memcpy(peak, used, sizeof peak); }

/* --- what of the CUDA runtime is about memory -------------------------------------------------------------------- */

API cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    make_current(current_device());
    *total = settings.bytes;
    *free_bytes = room() > used[current_device()] ? room() - used[current_device()] : 0;
    return 0;
}

API cudaError_t cudaMalloc(void **address, size_t bytes) { return failed(allocate(address, bytes)); }

API cudaError_t cudaFree(void *address) {
    release(address);
    return 0;
}

API cudaError_t cudaMallocAsync(void **address, size_t bytes, cudaStream_t stream) {
    (void)stream;
    return failed(allocate(address, bytes));
}

API cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) {
    (void)stream;
    release(address);
    return 0;
}

API cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    (void)kind;
    return failed(transfer(to, from, bytes, stream_of(0), 1));
}

API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    (void)kind;
    return failed(transfer(to, from, bytes, stream_of(stream), 0));
}

API cudaError_t cudaMemcpyPeerAsync(void *to, int target, const void *from, int source, size_t bytes, cudaStream_t stream) {
    (void)target, (void)source;
    return failed(transfer(to, from, bytes, stream_of(stream), 0));
}

API cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                                  enum cudaMemcpyKind kind, cudaStream_t stream) {
    (void)kind;
    for (size_t row = 0; row < height; row++) {
        int error = transfer((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width, stream_of(stream), 0);
        if (error) return failed(error);
    }
    return 0;
}

API cudaError_t cudaMemsetAsync(void *address, int value, size_t bytes, cudaStream_t handle) {
    struct stream *stream = stream_of(handle);
    if (stream->capture) stream->capture->nodes++;
    note_call(SET, stream, 0);
    if (bytes <= SMALL) memset(address, value, bytes);
    set_written(address, bytes <= SMALL ? bytes : 0);
    return 0;
}

API cudaError_t cudaMemset(void *address, int value, size_t bytes) { return cudaMemsetAsync(address, value, bytes, 0); }

API cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    (void)flags;
    *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*address) return failed(cudaErrorMemoryAllocation);
    pthread_mutex_lock(&lock);
    add(*address, bytes, (struct range){PINNED, -1});
    pthread_mutex_unlock(&lock);
    note((struct entry){.kind = HOST_ALLOC, .bytes = bytes});
    return 0;
}

API cudaError_t cudaFreeHost(void *address) {
    pthread_mutex_lock(&lock);
    size_t bytes = forget(address).bytes;
    pthread_mutex_unlock(&lock);
    free(address);
    note((struct entry){.kind = HOST_FREE, .bytes = bytes});
    return 0;
}

API cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned flags) {
    (void)flags;
    if (settings.refuse_pinning) return failed(settings.refuse_pinning);
    pthread_mutex_lock(&lock);
    add(address, bytes, (struct range){PINNED, -1});
    pthread_mutex_unlock(&lock);
    note((struct entry){.kind = HOST_REGISTER, .bytes = bytes});
    return 0;
}

API cudaError_t cudaHostUnregister(void *address) {
    pthread_mutex_lock(&lock);
    size_t bytes = forget(address).bytes;
    pthread_mutex_unlock(&lock);
    note((struct entry){.kind = HOST_UNREGISTER, .bytes = bytes});
    return 0;
}

API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *address) {
    struct range range = range_of(address);
    memset(found, 0, sizeof *found);
    found->type = range.place == ON_DEVICE ? cudaMemoryTypeDevice
                  : range.place == PINNED  ? cudaMemoryTypeHost
                                           : cudaMemoryTypeUnregistered;
    found->device = range.device < 0 ? (range.place == PINNED ? 0 : cudaInvalidDeviceId) : range.device;
    found->devicePointer = range.place == PAGEABLE ? 0 : (void *)address;
    found->hostPointer = range.place == ON_DEVICE ? 0 : (void *)address;
    return 0;
}
