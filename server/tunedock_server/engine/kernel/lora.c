/* Multi-LoRA for small groups of rows (decode steps), in one call per layer.
 *
 *     y[t] += scale * (h[t] @ B[s]),   h[t] = A[s] @ x[t],   s = slot of row t
 *
 * A is [slots][slices * max_rank][inner], B is [slots][max_rank][outer]; slice i owns rows i * max_rank ... of A and the
 * columns offset[i] ... offset[i + 1] of B. Only the first `rank` ranks of a slot are read. Rows are grouped by slot, so
 * that a weight is converted to float32 once for up to four rows; sums and h stay in float32 and y is rounded once.
 *
 * Plain C with GCC vector extensions: the same source serves AVX-512, AVX2 and NEON. The inner loops are inlined for each
 * count of rows, because the compiler keeps the sums in registers only where the counts are constants.
 */
#include <stdint.h>
#include <string.h>

#define LANES 16
#define ROWS 4
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

typedef struct {
    const void *a, *b;
    int64_t inner, outer, slices, max_rank;
    int64_t offset[8]; /* slices + 1 of them */
} layer_t;

typedef struct {
    int64_t groups;
    const int32_t *slot;  /* [groups] */
    const int32_t *rank;  /* [groups] */
    const int32_t *start; /* [groups + 1], into row */
    const int32_t *row;   /* rows of x and y, group after group */
} batch_t;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE float sum_of(vf v) {
    float total = 0;
    for (int l = 0; l < LANES; l++) total += v[l];
    return total;
}

INLINE vf load_f32(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store_f32(float *p, vf v) { memcpy(p, &v, sizeof v); }

INLINE vf load_bf16(const uint16_t *p) {
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}

INLINE void store_bf16(uint16_t *p, vf v) { /* rounds to nearest even */
    vu u = (vu)v;
    vh h = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, vh);
    memcpy(p, &h, sizeof h);
}

INLINE float load1_f32(const float *p) { return *p; }
INLINE void store1_f32(float *p, float f) { *p = f; }

INLINE float load1_bf16(const uint16_t *p) {
    uint32_t u = (uint32_t)*p << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

INLINE void store1_bf16(uint16_t *p, float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    *p = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

#define ELEMENT uint16_t
#define F(name) name##_bf16
#include "lora_body.h"
#undef ELEMENT
#undef F

#define ELEMENT float
#define F(name) name##_f32
#include "lora_body.h"
