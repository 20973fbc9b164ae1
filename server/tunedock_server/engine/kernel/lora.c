/* Multi-LoRA in one call per layer.
 *
 *     y[t] += scale * (h[t] @ B^T),   h[t] = A @ x[t],   with A, B and scale of row t's adapter
 *
 * A is [rank][inner] and B [width][rank], as adapter files hold them: each adapter has a table that says where its matrices
 * lie, so that whatever memory they are in (a mapped file, as a rule) is computed from as it is. A layer may have several
 * slices, each with a module of its own; slice i owns the columns offset[i] ... offset[i + 1] of y. Rows are grouped by
 * adapter, so that a weight is read once for up to four rows; sums are float32 and y is rounded once.
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

#ifdef __AVX512F__
#define LANES 16 /* floats in a register */
#else
#define LANES 8 /* of AVX2; two registers of NEON */
#endif
#define ROWS 4
#define SUMS LANES
#define BLOCK_RANKS (SUMS / ROWS)
#define RANKS 8        /* of A in one turn */
#define COLUMNS 64     /* of y in one turn */
#define WIDE 2         /* vectors of columns that are computed together */
#define MOST_RANKS 512 /* vLLM's largest */
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

typedef struct {
    const void *a, *b;
    int32_t rank; /* 0: the adapter leaves this module alone */
    float scale;
} pair_t;

typedef struct {
    int64_t inner, slices;
    int64_t first;     /* the first slice's place in a table */
    int64_t offset[8]; /* slices + 1 of them */
} layer_t;

typedef struct {
    int64_t groups, max_rank;
    const pair_t *const *table; /* [groups] */
    const int32_t *start;       /* [groups + 1], into row */
    const int32_t *row;         /* rows of x and y, group after group */
} batch_t;

INLINE void prefetch(const void *p, int64_t num_bytes) {
    for (int64_t i = 0; i < num_bytes; i += 64) __builtin_prefetch((const char *)p + i);
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Lane l of the result is the sum of v[l]: additions of interleaved halves instead of a sum over lanes for each. */
INLINE vf sums_of(vf v[SUMS]) {
#if LANES == 16
    const vi low[4] = {{0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30},
                       {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
                       {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27},
                       {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}};
#else
    const vi low[3] = {{0, 8, 2, 10, 4, 12, 6, 14}, {0, 1, 8, 9, 4, 5, 12, 13}, {0, 1, 2, 3, 8, 9, 10, 11}};
#endif
    for (int level = 0; SUMS >> level > 1; level++) {
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

INLINE vf widen(vh h) { return (vf)(__builtin_convertvector(h, vu) << 16); }

INLINE vf load_bf16(const uint16_t *p) {
    vh h;
    memcpy(&h, p, sizeof h);
    return widen(h);
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

/* What one multiplication takes is a packet: elements of a row of A or x, or LANES columns of y and DEPTH ranks of B, DEPTH
 * being 2 for pairs of bfloat16. `turn` makes the packets of LANES columns, one for every DEPTH ranks: B turned, in registers.
 * `same` repeats the DEPTH elements of h that belong to them; what a packet holds beyond the last rank is zero. */
INLINE vf same_f32(const float *h, int depth) { return *h - (vf){0}; }
INLINE vf add_products_f32(vf sum, vf a, vf b) { return sum + a * b; }

INLINE void turn_f32(vf *to, const float *b, int64_t rank) {
    for (int64_t k = 0; k < rank; k++)
        for (int lane = 0; lane < LANES; lane++) to[k][lane] = b[lane * rank + k];
}

typedef uint16_t v8h __attribute__((vector_size(16)));

/* Eight rows of eight ranks, in unpacking steps of 16, 32 and 64 bits. */
INLINE void turn_eight(v8h to[8], const uint16_t *b, int64_t rank) {
    const v8h low = {0, 8, 1, 9, 2, 10, 3, 11};
    v8h z[8], y[8];
    for (int i = 0; i < 8; i++) memcpy(&z[i], b + i * rank, sizeof z[i]);
    for (int step = 0; step < 3; step++) { /* a perfect shuffle of all 64 elements, three times */
        for (int i = 0; i < 4; i++) {
            y[2 * i] = __builtin_shuffle(z[i], z[i + 4], low);
            y[2 * i + 1] = __builtin_shuffle(z[i], z[i + 4], low + 4);
        }
        memcpy(z, y, sizeof z);
    }
    memcpy(to, z, sizeof z);
}

/* To float32 packets. */
INLINE void turn_wide(vf *to, const uint16_t *b, int64_t rank) {
    int64_t k = 0;
    for (; k + 8 <= rank; k += 8) {
        v8h part[LANES / 8][8];
        for (int i = 0; i < LANES / 8; i++) turn_eight(part[i], b + k + i * 8 * rank, rank);
        for (int r = 0; r < 8; r++) {
            vh both;
            for (int i = 0; i < LANES / 8; i++) memcpy((v8h *)&both + i, &part[i][r], sizeof part[i][r]);
            to[k + r] = widen(both);
        }
    }
    for (; k < rank; k++)
        for (int lane = 0; lane < LANES; lane++) to[k][lane] = load1_bf16(b + lane * rank + k);
}

#ifdef __AVX512BF16__
INLINE __m512bh take_bf16(const uint16_t *p) { return (__m512bh)_mm512_loadu_si512(p); }
INLINE vf add_products_bf16(vf sum, __m512bh a, __m512bh b) { return (vf)_mm512_dpbf16_ps((__m512)sum, a, b); }

INLINE __m512bh same_bf16(const uint16_t *h, int depth) {
    int32_t pair = *h;
    if (depth == 2) memcpy(&pair, h, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

/* Rows `row` and `row + 4` of B, 16 ranks of each. Nothing is read where `ranks` has no bit. */
INLINE __m512i two_rows(const uint16_t *b, int64_t rank, int row, __mmask16 ranks) {
    const __m256i low = _mm256_maskz_loadu_epi16(ranks, b + row * rank);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_maskz_loadu_epi16(ranks, b + (row + 4) * rank), 1);
}

/* Eight rows; pairs of ranks are 32-bit elements. Lanes of 128 bits of to[i] hold pair i of rows 0 to 3, pair i + 4 of them,
 * and the same of rows 4 to 7. */
INLINE void turn_pairs(__m512i to[4], const uint16_t *b, int64_t rank, __mmask16 ranks) {
    __m512i z[4], half[4];
    for (int i = 0; i < 4; i++) z[i] = two_rows(b, rank, i, ranks);
    for (int i = 0; i < 4; i += 2) {
        half[i] = _mm512_unpacklo_epi32(z[i], z[i + 1]);
        half[i + 1] = _mm512_unpackhi_epi32(z[i], z[i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        to[2 * i] = _mm512_unpacklo_epi64(half[i], half[2 + i]);
        to[2 * i + 1] = _mm512_unpackhi_epi64(half[i], half[2 + i]);
    }
}

INLINE void turn_bf16(__m512bh *to, const uint16_t *b, int64_t rank) {
    if (rank == 1) {
        to[0] = (__m512bh)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)b));
        return;
    }
    for (int64_t k = 0; k < rank; k += 16, to += 8) {
        const __mmask16 ranks = (__mmask16)(rank - k >= 16 ? 0xffff : (1u << (rank - k)) - 1);
        __m512i first[4], last[4];
        turn_pairs(first, b + k, rank, ranks);
        turn_pairs(last, b + k + 8 * rank, rank, ranks);
        for (int i = 0; i < 4; i++) {
            to[i] = (__m512bh)_mm512_shuffle_i32x4(first[i], last[i], 0x88);
            to[4 + i] = (__m512bh)_mm512_shuffle_i32x4(first[i], last[i], 0xdd);
        }
    }
}

INLINE void store_bf16(uint16_t *p, vf v) {
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &h, sizeof h);
}
#else
INLINE void store_bf16(uint16_t *p, vf v) { /* rounds to nearest even */
    vu u = (vu)v;
    vh h = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, vh);
    memcpy(p, &h, sizeof h);
}
#endif

/* Work is cut into turns: `step` ranks of A or columns of y within a slice, for one group. The groups of one piece follow each
 * other, so that a single adapter also uses every thread and threads get equal shares of every adapter. */
typedef struct {
    const layer_t *layer;
    const batch_t *batch;
    int64_t step, slice, begin, group;
} turn_t;

/* Ranks or columns of a slice. */
INLINE int64_t extent(const turn_t *t, int64_t slice) {
    return t->step == RANKS ? t->batch->max_rank : t->layer->offset[slice + 1] - t->layer->offset[slice];
}

INLINE int64_t pieces(const turn_t *t, int64_t slice) { return (extent(t, slice) + t->step - 1) / t->step; }

INLINE int64_t turns(const turn_t *t) {
    int64_t num = 0;
    for (int64_t s = 0; s < t->layer->slices; s++) num += pieces(t, s);
    return num * t->batch->groups;
}

INLINE turn_t turn_at(const turn_t *first, int64_t number) {
    turn_t t = *first;
    int64_t piece = number / t.batch->groups;
    t.group = number % t.batch->groups;
    for (; t.slice + 1 < t.layer->slices && piece >= pieces(&t, t.slice); t.slice++) piece -= pieces(&t, t.slice);
    t.begin = piece * t.step;
    return t;
}

INLINE void go_on(turn_t *t) {
    if (t->slice == t->layer->slices || ++t->group < t->batch->groups) return; /* the end, where it stays */
    t->group = 0;
    t->begin += t->step;
    if (t->begin < extent(t, t->slice)) return;
    t->begin = 0;
    t->slice++;
}

INLINE const pair_t *pair_of(const turn_t *t) { return t->batch->table[t->group] + t->layer->first + t->slice; }
INLINE int64_t first_row(const turn_t *t) { return t->batch->start[t->group]; }
INLINE int64_t num_rows(const turn_t *t) { return t->batch->start[t->group + 1] - first_row(t); }
/* Of A or y; what is left of a slice at its end, nothing where the adapter has none. */
INLINE int64_t ranks_of(const turn_t *t) { return least(RANKS, pair_of(t)->rank - t->begin); }
INLINE int64_t columns_of(const turn_t *t) { return pair_of(t)->rank ? least(COLUMNS, extent(t, t->slice) - t->begin) : 0; }

/* Below, X is the type of x and y, W that of A and B. */
#define F(name) name##_f32_f32
#define X float
#define W float
#define HIDDEN float
#define PACKET vf
#define OF_X(action) action##_f32
#define OF_W(action) action##_f32
#define OF_H(action) action##_f32
#define TAKE_X load_f32
#define TAKE_W load_f32
#define TURN turn_f32
#define SAME same_f32
#define ADD_PRODUCTS add_products_f32
#include "lora_body.h"

#define F(name) name##_f32_bf16
#define X float
#define W uint16_t
#define HIDDEN float
#define PACKET vf
#define OF_X(action) action##_f32
#define OF_W(action) action##_bf16
#define OF_H(action) action##_f32
#define TAKE_X load_f32
#define TAKE_W load_bf16
#define TURN turn_wide
#define SAME same_f32
#define ADD_PRODUCTS add_products_f32
#include "lora_body.h"

#define F(name) name##_bf16_bf16
#define X uint16_t
#define W uint16_t
#define OF_X(action) action##_bf16
#define OF_W(action) action##_bf16
#ifdef __AVX512BF16__
#define HIDDEN uint16_t
#define PACKET __m512bh
#define OF_H(action) action##_bf16
#define TAKE_X take_bf16
#define TAKE_W take_bf16
#define TURN turn_bf16
#define SAME same_bf16
#define ADD_PRODUCTS add_products_bf16
#else
#define HIDDEN float
#define PACKET vf
#define OF_H(action) action##_f32
#define TAKE_X load_bf16
#define TAKE_W load_bf16
#define TURN turn_wide
#define SAME same_f32
#define ADD_PRODUCTS add_products_f32
#endif
#include "lora_body.h"
