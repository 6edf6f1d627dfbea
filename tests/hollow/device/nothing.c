/* Calls that succeed and do nothing. In a file of its own, without the prototypes of CUDA's headers. */
#include "hollow.h"

#define NOTHING(name) \
    API int name(void) { return 0; }

NOTHING(__cudaInitModule)
NOTHING(__cudaRegisterVar)
NOTHING(cudaFuncSetAttribute)
NOTHING(cudaProfilerStart)
NOTHING(cudaProfilerStop)
NOTHING(cudaDeviceReset)
NOTHING(cudaDeviceSetLimit)
NOTHING(cudaSetDeviceFlags)
NOTHING(cudaGraphDebugDotPrint)
