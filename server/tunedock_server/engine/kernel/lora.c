/* Multi-LoRA in one call per layer.
 *
 *     y[t] += scale * (h[t] @ B[s]),   h[t] = A[s] @ x[t],   s = slot of row t
 *
 * A is [slots][slices * max_rank][inner], B is [slots][max_rank][outer]; slice i owns rows i * max_rank ... of A and the
 * columns offset[i] ... offset[i + 1] of B. Only the first `rank` ranks of a slot are read. Rows are grouped by slot, so
 * that a weight is read once for up to four rows; sums are float32 and y is rounded once.
 *
 * Plain C with GCC vector extensions: the same source serves AVX-512, AVX2 and NEON. Where the processor multiplies pairs
 * of bfloat16 into float32 sums (AVX-512 BF16), nothing is converted and h is kept in bfloat16, as PEFT and vLLM's GPU
 * kernels do; elsewhere h is float32. The inner loops are inlined for each count of rows, because the compiler keeps the
 * sums in registers only where the counts are constants.
 */
#include <omp.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define LANES 16
#define ROWS 4
#define SUMS 16
#define RANKS 8    /* of A in one turn */
#define COLUMNS 64 /* of B in one turn */
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef uint16_t vw __attribute__((vector_size(4 * LANES)));

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
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Lane l of the result is the sum of v[l]: 15 additions of interleaved halves instead of 16 sums over lanes. */
INLINE vf sums_of(vf v[SUMS]) {
    const vi low[4] = {{0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30},
                       {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
                       {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27},
                       {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}};
    for (int level = 0; level < 4; level++) {
        const vi high = low[level] + (1 << level);
        for (int i = 0; i < SUMS >> (level + 1); i++)
            v[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], low[level]) + __builtin_shuffle(v[2 * i], v[2 * i + 1], high);
    }
    return v[0];
}

INLINE vf load_f32(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store_f32(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE float load1_f32(const float *p) { return *p; }
INLINE void store1_f32(float *p, float f) { *p = f; }

INLINE vf load_bf16(const uint16_t *p) {
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}

INLINE float load1_bf16(const uint16_t *p) {
    uint32_t u = (uint32_t)*p << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

INLINE void store1_bf16(uint16_t *p, float f) { /* rounds to nearest even */
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    *p = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

/* What one multiplication takes is a packet: PACKET elements of a row of A or x, or 16 columns of DEPTH rows of B.
 * `take_columns` makes the two packets of 32 columns, `same` repeats the DEPTH elements of h that belong to them. */
typedef vf packet_f32;
typedef float hidden_f32;
#define PACKET_f32 LANES
#define DEPTH_f32 1
INLINE packet_f32 take_f32(const float *p) { return load_f32(p); }
INLINE packet_f32 same_f32(const float *h, int depth) { return *h - (vf){0}; }
INLINE vf add_products_f32(vf sum, packet_f32 a, packet_f32 b) { return sum + a * b; }
INLINE float load1_hidden_f32(const float *h) { return *h; }
INLINE void store1_hidden_f32(float *h, float f) { *h = f; }
INLINE void take_columns_f32(packet_f32 *to, const float *b, int64_t outer, int depth) {
    to[0] = load_f32(b);
    to[1] = load_f32(b + LANES);
}

#ifdef __AVX512BF16__
typedef __m512bh packet_bf16;
typedef uint16_t hidden_bf16;
#define PACKET_bf16 (2 * LANES)
#define DEPTH_bf16 2
INLINE packet_bf16 take_bf16(const uint16_t *p) { return (__m512bh)_mm512_loadu_si512(p); }
INLINE vf add_products_bf16(vf sum, packet_bf16 a, packet_bf16 b) { return (vf)_mm512_dpbf16_ps((__m512)sum, a, b); }
INLINE float load1_hidden_bf16(const uint16_t *h) { return load1_bf16(h); }
INLINE void store1_hidden_bf16(uint16_t *h, float f) { store1_bf16(h, f); }

INLINE packet_bf16 same_bf16(const uint16_t *h, int depth) {
    int32_t pair = *h;
    if (depth == 2) memcpy(&pair, h, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

INLINE void take_columns_bf16(packet_bf16 *to, const uint16_t *b, int64_t outer, int depth) {
    const vw pairs = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    vw even = (vw)_mm512_loadu_si512(b), odd = {0};
    if (depth == 2) odd = (vw)_mm512_loadu_si512(b + outer);
    to[0] = (__m512bh)__builtin_shuffle(even, odd, pairs);
    to[1] = (__m512bh)__builtin_shuffle(even, odd, pairs + 16);
}

INLINE void store_bf16(uint16_t *p, vf v) {
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &h, sizeof h);
}
#else
typedef vf packet_bf16;
typedef float hidden_bf16;
#define PACKET_bf16 LANES
#define DEPTH_bf16 1
INLINE packet_bf16 take_bf16(const uint16_t *p) { return load_bf16(p); }
INLINE packet_bf16 same_bf16(const float *h, int depth) { return same_f32(h, depth); }
INLINE vf add_products_bf16(vf sum, packet_bf16 a, packet_bf16 b) { return sum + a * b; }
INLINE float load1_hidden_bf16(const float *h) { return *h; }
INLINE void store1_hidden_bf16(float *h, float f) { *h = f; }

INLINE void take_columns_bf16(packet_bf16 *to, const uint16_t *b, int64_t outer, int depth) {
    to[0] = load_bf16(b);
    to[1] = load_bf16(b + LANES);
}

INLINE void store_bf16(uint16_t *p, vf v) { /* rounds to nearest even */
    vu u = (vu)v;
    vh h = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, vh);
    memcpy(p, &h, sizeof h);
}
#endif

#define ELEMENT uint16_t
#define F(name) name##_bf16
#include "lora_body.h"
#undef ELEMENT
#undef F

#define ELEMENT float
#define F(name) name##_f32
#include "lora_body.h"
