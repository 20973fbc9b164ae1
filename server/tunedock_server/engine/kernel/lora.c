/* Multi-LoRA in one call per layer.
 *
 *     y[t] += scale * (h[t] @ B^T),   h[t] = A @ x[t],   with A, B and scale of row t's adapter
 *
 * A is [rank][inner] and B [width][rank], as adapter files hold them: each adapter has a table that says where its matrices
 * lie, so that whatever memory they are in (a mapped file, as a rule) is computed from as it is. A layer may have several
 * slices, each with a module of its own; slice i owns the columns offset[i] ... offset[i + 1] of y. Rows are grouped by
 * adapter, so that a weight is read once for up to ROWS of them; sums are float32 and y is rounded once.
 *
 * Plain C with GCC vector extensions: the same source serves AVX-512, AVX2 and NEON. Where the processor multiplies pairs
 * of bfloat16 into float32 sums (AVX-512 BF16), nothing is converted and h is kept in bfloat16, as PEFT and vLLM's GPU
 * kernels do; elsewhere h is float32. The inner loops are inlined for each count of rows, because the compiler keeps the
 * sums in registers only where the counts are constants.
 */
#include <omp.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

/* LANES: floats in a register. ROWS are computed together, with up to SUMS sums in registers. */
#ifdef __AVX512F__
#define LANES 16
#define ROWS 4
#define SUMS 16
#else /* AVX2 with sixteen registers; of NEON a vector takes two */
#define LANES 8
#define ROWS 6
#define SUMS 12
#endif
#define RANKS 8        /* of A in one turn */
#define COLUMNS 64     /* of y in one turn */
#define WIDE 2         /* vectors of columns that are computed together */
#define MOST_RANKS 512 /* vLLM's largest */
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
/* Anywhere in memory: what memcpy takes in pieces waits for them when it is read as a whole. */
typedef vu vu_anywhere __attribute__((aligned(2), may_alias));

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
    int64_t groups, max_rank, tiled;
    const pair_t *const *table; /* [groups] */
    const int32_t *start;       /* [groups + 1], into row */
    const int32_t *row;         /* rows of x and y, group after group */
} batch_t;

INLINE void prefetch(const void *p, int64_t num_bytes) {
    for (int64_t i = 0; i < num_bytes; i += 64) __builtin_prefetch((const char *)p + i);
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The compiler would load a value once more for each of its uses, and loads are what there are most of. */
#ifdef __x86_64__
#define KEEP(value) __asm__("" : "+v"(value))
#else
#define KEEP(value)
#endif

/* Lane l of the result is the sum of v[l]: additions of interleaved halves instead of a sum over lanes for each. */
INLINE vf sums_of(vf v[LANES]) {
#if LANES == 16
    const vi low[4] = {{0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30},
                       {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
                       {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27},
                       {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}};
#else
    const vi low[3] = {{0, 8, 2, 10, 4, 12, 6, 14}, {0, 1, 8, 9, 4, 5, 12, 13}, {0, 1, 2, 3, 8, 9, 10, 11}};
#endif
    for (int level = 0; LANES >> level > 1; level++) {
        const vi high = low[level] + (1 << level);
        for (int i = 0; i < LANES >> (level + 1); i++)
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

#if defined __AVX512F__ /* GCC 12 converts halves of a vector and puts them together: five instructions for one */
INLINE vf widen(vh h) { return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16); }
#elif defined __AVX2__
INLINE vf widen(vh h) { return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16); }
#else
INLINE vf widen(vh h) { return (vf)(__builtin_convertvector(h, vu) << 16); }
#endif

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

#if LANES == 8
/* Eight rows of sixteen ranks, as eight words of two: turned in steps of 32, 64 and 128 bits, and halved into float32 then. */
INLINE void turn_words(vf to[16], const uint16_t *b, int64_t rank) {
    const vi low = {0, 8, 1, 9, 4, 12, 5, 13}, low2 = {0, 1, 8, 9, 4, 5, 12, 13}, low4 = {0, 1, 2, 3, 8, 9, 10, 11};
    vu z[8], y[8];
    for (int i = 0; i < 8; i++) z[i] = *(const vu_anywhere *)(b + i * rank);
    for (int i = 0; i < 8; i += 2) {
        y[i] = __builtin_shuffle(z[i], z[i + 1], low);
        y[i + 1] = __builtin_shuffle(z[i], z[i + 1], low + 2);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            z[i + 2 * j] = __builtin_shuffle(y[i + j], y[i + j + 2], low2);
            z[i + 2 * j + 1] = __builtin_shuffle(y[i + j], y[i + j + 2], low2 + 2);
        }
    for (int w = 0; w < 8; w++) { /* word w of all rows; of the words, the first rank is the lower half */
        const vu word = __builtin_shuffle(z[w % 4], z[w % 4 + 4], low4 + w / 4 * 4);
        to[2 * w] = (vf)(word << 16);
        to[2 * w + 1] = (vf)(word & 0xffff0000);
    }
}

/* The even ranks of every sixteen of h, then the odd ones. */
INLINE void halves_of(vf *halves, const float *h, int64_t rank) {
    const vi even = {0, 2, 4, 6, 8, 10, 12, 14};
    for (int64_t k = 0; k < rank; k += 16, halves += 2) {
        const vf low = load_f32(h + k), high = load_f32(h + k + 8);
        halves[0] = __builtin_shuffle(low, high, even);
        halves[1] = __builtin_shuffle(low, high, even + 1);
    }
}

INLINE vf product_of(const uint16_t *b, const vf *halves) {
    const vu words = *(const vu_anywhere *)b;
    return (vf)(words << 16) * halves[0] + (vf)(words & 0xffff0000) * halves[1];
}

/* Eight columns of B times one h: for a single row that is less than turning them. */
INLINE vf dots(const uint16_t *b, const vf *halves, int64_t rank) {
    vf sum[8]; /* not zero at first: clearing it would be a call */
    for (int c = 0; c < 8; c++) sum[c] = product_of(b + c * rank, halves);
    for (int64_t k = 16; k < rank; k += 16)
        for (int c = 0; c < 8; c++) sum[c] += product_of(b + c * rank + k, halves + k / 8);
    return sums_of(sum);
}
#endif

/* To float32 packets. */
INLINE void turn_wide(vf *to, const uint16_t *b, int64_t rank) {
    int64_t k = 0;
#if LANES == 8
    for (; k + 16 <= rank; k += 16) turn_words(to + k, b + k, rank);
#endif
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

/* Work is cut into turns: a piece (`step` ranks of A or columns of y within a slice) for one group. The groups of one piece follow
 * each other, so that a single adapter also uses every thread and threads get equal shares of every adapter; in a batch that is
 * `tiled`, whose adapters have their many rows in several groups, the pieces of one group do, whose rows of x and y stay in cache. */
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

INLINE int64_t all_pieces(const turn_t *t) {
    int64_t num = 0;
    for (int64_t s = 0; s < t->layer->slices; s++) num += pieces(t, s);
    return num;
}

INLINE int64_t turns(const turn_t *t) { return all_pieces(t) * t->batch->groups; }

INLINE turn_t turn_at(const turn_t *first, int64_t number) {
    turn_t t = *first;
    const int64_t inner = t.batch->tiled ? all_pieces(&t) : t.batch->groups;
    int64_t piece = t.batch->tiled ? number % inner : number / inner;
    t.group = t.batch->tiled ? number / inner : number % inner;
    for (; t.slice + 1 < t.layer->slices && piece >= pieces(&t, t.slice); t.slice++) piece -= pieces(&t, t.slice);
    t.begin = piece * t.step;
    return t;
}

/* Whether there is another piece; else back to the first. */
INLINE int next_piece(turn_t *t) {
    t->begin += t->step;
    if (t->begin < extent(t, t->slice)) return 1;
    t->begin = 0;
    if (++t->slice < t->layer->slices) return 1;
    t->slice = 0;
    return 0;
}

/* After the last turn comes the first: whoever goes on knows how many there are. */
INLINE void go_on(turn_t *t) {
    if (t->batch->tiled) {
        if (!next_piece(t)) t->group = (t->group + 1) % t->batch->groups;
    } else if (++t->group == t->batch->groups) {
        t->group = 0;
        next_piece(t);
    }
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
#define DOTS 0
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
#define DOTS (LANES == 8)
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
#define DOTS 0
#define SAME same_bf16
#define ADD_PRODUCTS add_products_bf16
#else
#define HIDDEN float
#define PACKET vf
#define OF_H(action) action##_f32
#define TAKE_X load_bf16
#define TAKE_W load_bf16
#define TURN turn_wide
#define DOTS (LANES == 8)
#define SAME same_f32
#define ADD_PRODUCTS add_products_f32
#endif
#include "lora_body.h"
