/* A count of every kind of call, and while recording is on, all of them in their order. */
#include "hollow.h"

#include <stdlib.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t counts[KINDS], sums[KINDS];
static struct entry *entries;
static size_t length, capacity;
static int recording;

void note(struct entry entry) {
    pthread_mutex_lock(&lock);
    counts[entry.kind]++;
    sums[entry.kind] += entry.bytes;
    if (recording && length == capacity) {
        size_t larger = capacity ? 2 * capacity : 4096;
        struct entry *grown = realloc(entries, larger * sizeof *grown);
        if (grown) {
            entries = grown;
            capacity = larger;
        }
    }
    if (recording && length < capacity) entries[length++] = entry;
    pthread_mutex_unlock(&lock);
}

void note_call(enum kind kind, const struct stream *stream, const char *name) {
    note((struct entry){.kind = kind, .device = stream->device, .stream = stream->number, .name = name,
                        .flags = stream->capture ? CAPTURED : 0});
}

API uint64_t hollow_count(int kind) { return kind >= 0 && kind < KINDS ? counts[kind] : 0; }

/* Of copies, allocations and registrations. */
API uint64_t hollow_bytes(int kind) { return kind >= 0 && kind < KINDS ? sums[kind] : 0; }

API void hollow_reset(void) {
    pthread_mutex_lock(&lock);
    for (int kind = 0; kind < KINDS; kind++) counts[kind] = sums[kind] = 0;
    length = 0;
    pthread_mutex_unlock(&lock);
}

/* Recording keeps what it has until hollow_reset. */
API void hollow_record(int on) {
    pthread_mutex_lock(&lock);
    recording = on;
    pthread_mutex_unlock(&lock);
}

/* The recorded calls; they stay where they are until the next call is recorded. */
API const struct entry *hollow_entries(size_t *count) {
    *count = length;
    return entries;
}

API int hollow_present(void) { return KINDS; }
