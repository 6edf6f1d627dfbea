/* For what PyTorch's libraries could call and nothing here does; build.py lists the names. Such a call is refused, and counted
 * as a fault by name, so that a test that needs one says which. */
#include "hollow.h"

#define REFUSE(name) \
    API int name(void) { return fault(stream_of(0), 801, #name " is not implemented"); }
