/* What the environment asks for, read once when the library is loaded; tests may change some of it. */
#include "hollow.h"

#include <stdlib.h>

struct settings settings = {.allowed = -1};

static long long number(const char *name, long long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoll(text) : otherwise;
}

__attribute__((constructor)) static void read_environment(void) {
    long long devices = number("HOLLOW_DEVICES", 1);
    settings.devices = devices < 0 ? 0 : devices > MOST_DEVICES ? MOST_DEVICES : (int)devices;
    settings.capability = (int)number("HOLLOW_SM", 90);
    settings.name = getenv("HOLLOW_NAME");
    settings.bytes = (size_t)number("HOLLOW_GIB", 80) << 30;
    settings.context_bytes = (size_t)number("HOLLOW_CONTEXT_MIB", 768) << 20;
    settings.fill = (int)number("HOLLOW_FILL", 0);
    settings.conv_workspace = (size_t)number("HOLLOW_CUDNN_WORKSPACE", 0);
}

API void hollow_take(size_t bytes) { settings.taken = bytes; }
API void hollow_set_fill(int byte) { settings.fill = byte; }
API void hollow_refuse_pinning(int error) { settings.refuse_pinning = error; }
API void hollow_refuse_allocations(long after, long count) {
    settings.allowed = after;
    settings.refused = count;
}
