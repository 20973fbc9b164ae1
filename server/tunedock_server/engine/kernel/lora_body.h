/* Included once for each pair of element types; see lora.c. h has `width` elements a row.
 *
 * `soon`, unless null, is where the same thread will read next, in the pattern of the present piece. It is fetched
 * meanwhile: a call waits for memory more than for arithmetic, and no hardware prefetcher foresees the next adapter. */

#define DEPTH ((int64_t)(sizeof(PACKET) / sizeof(HIDDEN) / LANES))
#define STEP ((int64_t)(LANES * DEPTH)) /* elements of a packet */

/* h[row][k] for `ks` rows of A and `rows` rows of x, ks * rows <= SUMS. */
INLINE void F(shrink_block)(const int ks, const int rows, const W *a, const X *const *x, HIDDEN *h, int64_t inner,
                            int64_t width, const W *soon) {
    vf sum[SUMS];
    for (int s = 0; s < ks * rows; s++) sum[s] = (vf){0};
    int64_t i = 0;
    for (; i + STEP <= inner; i += STEP) {
        PACKET w[SUMS], v[ROWS];
        if (soon)
            for (int k = 0; k < ks; k++) __builtin_prefetch(soon + k * inner + i);
        if (ks < rows) { /* what there is less of stays in registers */
            for (int k = 0; k < ks; k++) w[k] = TAKE_W(a + k * inner + i);
            for (int r = 0; r < rows; r++) {
                v[r] = TAKE_X(x[r] + i);
                KEEP(v[r]);
                for (int k = 0; k < ks; k++) sum[r * ks + k] = ADD_PRODUCTS(sum[r * ks + k], w[k], v[r]);
            }
        } else {
            for (int r = 0; r < rows; r++) v[r] = TAKE_X(x[r] + i);
            for (int k = 0; k < ks; k++) {
                w[k] = TAKE_W(a + k * inner + i);
                KEEP(w[k]);
                for (int r = 0; r < rows; r++) sum[r * ks + k] = ADD_PRODUCTS(sum[r * ks + k], w[k], v[r]);
            }
        }
    }
    for (int first = 0; first < ks * rows; first += LANES) {
        vf some[LANES];
        for (int s = 0; s < LANES; s++) some[s] = first + s < ks * rows ? sum[first + s] : (vf){0};
        const vf total = sums_of(some);
        for (int s = first; s < least(first + LANES, ks * rows); s++) {
            const int r = s / ks, k = s % ks;
            float rest = 0;
            for (int64_t j = i; j < inner; j++) rest += OF_W(load1)(a + k * inner + j) * OF_X(load1)(x[r] + j);
            OF_H(store1)(h + r * width + k, total[s - first] + rest);
        }
    }
}

INLINE void F(shrink_rows)(const int rows, const W *a, const X *const *x, HIDDEN *h, int64_t inner, int64_t ks, int64_t width,
                           const W *soon) {
    const int most = rows == 1 ? 8 : rows * 4 <= SUMS ? 4 : 2; /* divide RANKS */
    int64_t k = 0;
#define BLOCK(n) F(shrink_block)(n, rows, a + k * inner, x, h + k, inner, width, soon ? soon + k * inner : 0)
    for (; k + most <= ks; k += most) BLOCK(most);
    for (; k < ks; k++) BLOCK(1);
#undef BLOCK
}

#define FOR_COUNT(count, ACTION)   \
    switch (count) {               \
    case 1: ACTION(1); break;      \
    case 2: ACTION(2); break;      \
    case 3: ACTION(3); break;      \
    case 4: ACTION(4); break;      \
    case 5: ACTION(5); break;      \
    case 6: ACTION(6); break;      \
    }

static void F(shrink)(const W *a, const X *x, HIDDEN *h, const int32_t *row, int64_t x_stride, int64_t inner, int64_t rows,
                      int64_t ks, int64_t width, const W *soon) {
    for (int64_t r = 0; r < rows; r += ROWS, soon = 0) {
        const X *from[ROWS];
        const int64_t count = least(ROWS, rows - r);
        for (int64_t i = 0; i < count; i++) from[i] = x + row[r + i] * x_stride;
#define SHRINK(n) if (n <= ROWS) F(shrink_rows)(n, a, from, h + r * width, inner, ks, width, soon)
        FOR_COUNT(count, SHRINK)
#undef SHRINK
    }
}

/* y[row][...] += scale * sum_k h[row][k] * b[...][k] for `vectors` vectors of columns. */
INLINE void F(expand_rows)(const int vectors, const int rows, PACKET b[WIDE][MOST_RANKS / DEPTH], const HIDDEN *h, X *y,
                           const int32_t *row, int64_t y_stride, int64_t rank, int64_t width, float scale) {
    vf sum[ROWS][WIDE] = {{{0}}};
#define ADD(depth)                                                                                      \
    for (int r = 0; r < rows; r++) {                                                                    \
        const PACKET same = SAME(h + r * width + k, depth);                                             \
        for (int v = 0; v < vectors; v++) sum[r][v] = ADD_PRODUCTS(sum[r][v], b[v][k / DEPTH], same);   \
    }
    int64_t k = 0;
    for (; k + DEPTH <= rank; k += DEPTH) ADD(DEPTH)
    if (k < rank) ADD(1)
#undef ADD
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < vectors; v++) {
            X *out = y + row[r] * y_stride + v * LANES;
            __builtin_prefetch(out + WIDE * LANES, 1); /* the next columns of rows that lie far apart */
            OF_X(store)(out, OF_X(load)(out) + scale * sum[r][v]);
        }
    }
}

INLINE void F(expand_block)(const int vectors, const W *b, const HIDDEN *h, X *y, const int32_t *row, int64_t y_stride,
                            int64_t rows, int64_t rank, int64_t width, float scale) {
    PACKET turned[WIDE][MOST_RANKS / DEPTH];
    for (int v = 0; v < vectors; v++) TURN(turned[v], b + v * LANES * rank, rank);
    for (int64_t r = 0; r < rows; r += ROWS) {
#define EXPAND(n) if (n <= ROWS) F(expand_rows)(vectors, n, turned, h + r * width, y, row + r, y_stride, rank, width, scale)
        FOR_COUNT(least(ROWS, rows - r), EXPAND)
#undef EXPAND
    }
}

#if DOTS
/* The same for one row, for which turning B does not pay; `rank` is a multiple of 16. Returns how many columns are done. */
INLINE int64_t F(expand_one)(const W *b, const HIDDEN *h, X *y, int64_t rank, int64_t columns, float scale, const W *soon) {
    vf halves[MOST_RANKS / LANES];
    int64_t c = 0;
    halves_of(halves, h, rank);
    for (; c + LANES <= columns; c += LANES) {
        if (soon) prefetch(soon + c * rank, sizeof(W) * LANES * rank);
        OF_X(store)(y + c, OF_X(load)(y + c) + scale * dots(b + c * rank, halves, rank));
    }
    return c;
}
#endif

/* `b`: of the first of `columns` columns, `y`: of that column in row 0. */
static void F(expand)(const W *b, const HIDDEN *h, X *y, const int32_t *row, int64_t y_stride, int64_t rows, int64_t rank,
                      int64_t columns, int64_t width, float scale, const W *soon) {
    int64_t c = 0;
#if DOTS
    if (rows == 1 && rank % 16 == 0) c = F(expand_one)(b, h, y + row[0] * y_stride, rank, columns, scale, soon);
#endif
    for (; c + WIDE * LANES <= columns; c += WIDE * LANES) {
        if (soon) prefetch(soon + c * rank, sizeof(W) * WIDE * LANES * rank);
        F(expand_block)(WIDE, b + c * rank, h, y + c, row, y_stride, rows, rank, width, scale);
    }
    for (; c + LANES <= columns; c += LANES)
        F(expand_block)(1, b + c * rank, h, y + c, row, y_stride, rows, rank, width, scale);
    for (; c < columns; c++) {
        for (int64_t r = 0; r < rows; r++) {
            float sum = 0;
            for (int64_t k = 0; k < rank; k++) sum += OF_W(load1)(b + c * rank + k) * OF_H(load1)(h + r * width + k);
            X *out = y + row[r] * y_stride + c;
            OF_X(store1)(out, OF_X(load1)(out) + scale * sum);
        }
    }
}

INLINE const W *F(a_of)(const turn_t *t) { return (const W *)pair_of(t)->a + t->begin * t->layer->inner; }
INLINE const W *F(b_of)(const turn_t *t) { return (const W *)pair_of(t)->b + t->begin * pair_of(t)->rank; }

static void F(shrink_turns)(const turn_t *all, const X *x, int64_t x_stride, HIDDEN *h, int64_t from, int64_t to) {
    const int64_t most = all->batch->max_rank, width = all->layer->slices * most;
    turn_t now = turn_at(all, from), next = now;
    for (; from < to; from++, now = next) {
        const int64_t ranks = ranks_of(&now);
        go_on(&next);
        if (ranks > 0)
            F(shrink)(F(a_of)(&now), x, h + first_row(&now) * width + now.slice * most + now.begin,
                      now.batch->row + first_row(&now), x_stride, now.layer->inner, num_rows(&now), ranks, width,
                      from + 1 < to && ranks_of(&next) >= ranks ? F(a_of)(&next) : 0);
    }
}

static void F(expand_turns)(const turn_t *all, const HIDDEN *h, X *y, int64_t y_stride, float scale, int64_t from,
                            int64_t to) {
    const int64_t most = all->batch->max_rank, width = all->layer->slices * most;
    turn_t now = turn_at(all, from), soon = turn_at(all, from + 2);
    for (; from < to; from++, go_on(&now), go_on(&soon)) {
        const int64_t columns = columns_of(&now);
        if (columns)
            F(expand)(F(b_of)(&now), h + first_row(&now) * width + now.slice * most,
                      y + now.layer->offset[now.slice] + now.begin, now.batch->row + first_row(&now), y_stride,
                      num_rows(&now), pair_of(&now)->rank, columns, width, scale * pair_of(&now)->scale,
                      from + 2 < to && columns_of(&soon) >= columns ? F(b_of)(&soon) : 0);
    }
}

/* `scratch` holds rows * slices * max_rank floats; x and y are row-major with the given strides. */
void F(tunedock_lora)(const layer_t *layer, const batch_t *batch, const X *x, int64_t x_stride, X *y, int64_t y_stride,
                      float scale, void *scratch) {
    const turn_t shrinks = {layer, batch, RANKS, 0, 0, 0}, expands = {layer, batch, COLUMNS, 0, 0, 0};
    const int64_t num_shrinks = turns(&shrinks), num_expands = turns(&expands);
#pragma omp parallel
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
        const int64_t from = num_expands * me / all, to = num_expands * (me + 1) / all;
        F(shrink_turns)(&shrinks, x, x_stride, scratch, num_shrinks * me / all, num_shrinks * (me + 1) / all);
        turn_t t = turn_at(&expands, from);
        for (int64_t i = from; i < least(from + 2, to); i++, go_on(&t))
            prefetch(F(b_of)(&t), sizeof(W) * columns_of(&t) * pair_of(&t)->rank);
#pragma omp barrier
        F(expand_turns)(&expands, scratch, y, y_stride, scale, from, to);
    }
}

#undef FOR_COUNT
#undef DEPTH
#undef STEP
#undef F
#undef X
#undef W
#undef HIDDEN
#undef PACKET
#undef OF_X
#undef OF_W
#undef OF_H
#undef TAKE_X
#undef TAKE_W
#undef TURN
#undef DOTS
#undef SAME
#undef ADD_PRODUCTS
