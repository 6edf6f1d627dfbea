/* cuBLAS and cuBLASLt: products are counted and not computed. Their workspaces are PyTorch's own, which its allocator counts;
 * what these libraries would take of the device besides is not here. */
#include "hollow.h"

#include <string.h>

struct blas {
    int device;
    struct stream *stream;
};

API int cublasCreate_v2(struct blas **handle) {
    *handle = new_handle(sizeof **handle);
    (*handle)->device = current_device();
    (*handle)->stream = stream_of(0);
    return 0;
}

API int cublasSetStream_v2(struct blas *handle, void *stream) {
    handle->stream = stream_of(stream);
    return 0;
}

API int cublasGetStream_v2(struct blas *handle, void **stream) {
    *stream = handle->stream->number ? handle->stream : 0;
    return 0;
}

API int cublasGetVersion_v2(struct blas *handle, int *version) {
    (void)handle;
    *version = 130100;
    return 0;
}

API int cublasGetMathMode(struct blas *handle, int *mode) {
    (void)handle;
    *mode = 0;
    return 0;
}

API int cublasGetPointerMode_v2(struct blas *handle, int *mode) {
    (void)handle;
    *mode = 0;
    return 0;
}

#define SETTING(name) \
    API int name(void) { return 0; }
SETTING(cublasDestroy_v2)
SETTING(cublasSetWorkspace_v2)
SETTING(cublasSetMathMode)
SETTING(cublasSetPointerMode_v2)
SETTING(cublasSetAtomicsMode)

/* The further arguments of each call are of no concern here. */
#define WORK(name) \
    API int name(struct blas *handle) { return library_call(handle->device, handle->stream, #name) ? 14 : 0; }
#define REAL(name) WORK(cublasS##name) WORK(cublasD##name)
#define COMPLEX(name) WORK(cublasC##name) WORK(cublasZ##name)
#define ALL(name) REAL(name) COMPLEX(name)

WORK(cublasGemmEx)
WORK(cublasGemmStridedBatchedEx)
WORK(cublasGemmBatchedEx)
WORK(cublasSgemmEx)
WORK(cublasHgemmStridedBatched)
WORK(cublasDotEx)
ALL(gemm_v2)
ALL(gemmBatched)
ALL(gemmStridedBatched)
ALL(gemv_v2)
ALL(trsm_v2)
ALL(trsmBatched)
ALL(axpy_v2)
ALL(scal_v2)
ALL(copy_v2)
ALL(getrfBatched)
ALL(getrsBatched)
ALL(geqrfBatched)
ALL(gelsBatched)
REAL(dot_v2)
REAL(ger_v2)
REAL(syrk_v2)
REAL(nrm2_v2)
COMPLEX(dotc_v2)
COMPLEX(dotu_v2)

/* --- cuBLASLt ---------------------------------------------------------------------------------------------------- */

API int cublasLtCreate(void **handle) {
    *handle = new_handle(sizeof(int));
    return 0;
}

static int new_descriptor(void **descriptor) {
    *descriptor = new_handle(sizeof(int));
    return 0;
}

API int cublasLtMatmulDescCreate(void **descriptor) { return new_descriptor(descriptor); }
API int cublasLtMatrixLayoutCreate(void **descriptor) { return new_descriptor(descriptor); }
API int cublasLtMatmulPreferenceCreate(void **descriptor) { return new_descriptor(descriptor); }
API size_t cublasLtGetVersion(void) { return 130100; }

SETTING(cublasLtDestroy)
SETTING(cublasLtMatmulDescInit_internal)
SETTING(cublasLtMatmulDescSetAttribute)
SETTING(cublasLtMatmulDescDestroy)
SETTING(cublasLtMatrixLayoutInit_internal)
SETTING(cublasLtMatrixLayoutSetAttribute)
SETTING(cublasLtMatrixLayoutDestroy)
SETTING(cublasLtMatmulPreferenceInit_internal)
SETTING(cublasLtMatmulPreferenceSetAttribute)
SETTING(cublasLtMatmulPreferenceDestroy)

/* cublasLtMatmulHeuristicResult_t: one algorithm, which works in no memory and succeeds. */
struct heuristic {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

API int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                       int wanted, struct heuristic *results, int *count) {
    (void)handle, (void)operation, (void)a, (void)b, (void)c, (void)d, (void)preference;
    if (wanted > 0) memset(results, 0, sizeof *results);
    *count = wanted > 0;
    return 0;
}

API int cublasLtMatmul(void *handle, void *operation, const void *alpha, const void *a, void *a_layout, const void *b,
                       void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                       const void *algorithm, void *workspace, size_t workspace_bytes, void *stream) {
    (void)handle, (void)operation, (void)alpha, (void)a, (void)a_layout, (void)b, (void)b_layout, (void)beta, (void)c;
    (void)c_layout, (void)d, (void)d_layout, (void)algorithm, (void)workspace, (void)workspace_bytes;
    return library_call(current_device(), stream_of(stream), "cublasLtMatmul") ? 14 : 0;
}
