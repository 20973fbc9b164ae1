/* Included once for each element type; see lora.c. h has `width` elements a row.
 *
 * `soon`, unless null, is where the same thread will read next, in the pattern of the present piece. It is fetched
 * meanwhile: a call waits for memory more than for arithmetic, and no hardware prefetcher foresees the next adapter. */

/* h[row][k] for `ks` rows of A and `rows` rows of x, ks * rows <= SUMS. */
INLINE void F(shrink_block)(const int ks, const int rows, const ELEMENT *a, const ELEMENT *const *x, F(hidden) *h,
                            int64_t inner, int64_t width, const ELEMENT *soon) {
    vf sum[SUMS] = {{0}};
    int64_t i = 0;
    for (; i + F(PACKET) <= inner; i += F(PACKET)) {
        F(packet) w[SUMS];
        for (int k = 0; k < ks; k++) {
            w[k] = F(take)(a + k * inner + i);
            if (soon) __builtin_prefetch(soon + k * inner + i);
        }
        for (int r = 0; r < rows; r++) {
            F(packet) v = F(take)(x[r] + i);
            for (int k = 0; k < ks; k++) sum[r * ks + k] = F(add_products)(sum[r * ks + k], w[k], v);
        }
    }
    vf total = sums_of(sum);
    for (int r = 0; r < rows; r++) {
        for (int k = 0; k < ks; k++) {
            float rest = 0;
            for (int64_t j = i; j < inner; j++) rest += F(load1)(a + k * inner + j) * F(load1)(x[r] + j);
            F(store1_hidden)(h + r * width + k, total[r * ks + k] + rest);
        }
    }
}

INLINE void F(shrink_rows)(const int rows, const ELEMENT *a, const ELEMENT *const *x, F(hidden) *h, int64_t inner,
                           int64_t ks, int64_t width, const ELEMENT *soon) {
    int64_t k = 0;
#define BLOCK(n) F(shrink_block)(n, rows, a + k * inner, x, h + k, inner, width, soon ? soon + k * inner : 0)
    for (; k + 4 <= ks; k += 4) BLOCK(4);
    for (; k < ks; k++) BLOCK(1);
#undef BLOCK
}

static void F(shrink)(const ELEMENT *a, const ELEMENT *x, F(hidden) *h, const int32_t *row, int64_t x_stride, int64_t inner,
                      int64_t rows, int64_t ks, int64_t width, const ELEMENT *soon) {
    for (int64_t r = 0; r < rows; r += ROWS, soon = 0) {
        const ELEMENT *from[ROWS];
        const int64_t count = least(ROWS, rows - r);
        for (int64_t i = 0; i < count; i++) from[i] = x + row[r + i] * x_stride;
#define SHRINK(n) F(shrink_rows)(n, a, from, h + r * width, inner, ks, width, soon)
        if (count == 4) SHRINK(4);
        if (count == 3) SHRINK(3);
        if (count == 2) SHRINK(2);
        if (count == 1) SHRINK(1);
#undef SHRINK
    }
}

INLINE void F(prefetch_columns)(const ELEMENT *b, int64_t outer, int64_t ranks) {
    for (int64_t k = 0; k < ranks; k++)
        for (int64_t c = 0; c < COLUMNS; c += 64 / sizeof(ELEMENT)) __builtin_prefetch(b + k * outer + c);
}

/* sum[row][v] += h[row][k ...] * b[k ...][vector v], for `depth` ranks at once. */
INLINE void F(add_ranks)(const int depth, const int vectors, const int rows, vf sum[ROWS][4], const ELEMENT *b,
                         const F(hidden) *h, int64_t outer, int64_t width) {
    F(packet) w[4];
    for (int v = 0; v < vectors; v += 2) F(take_columns)(w + v, b + v * LANES, outer, depth);
    for (int r = 0; r < rows; r++) {
        F(packet) same = F(same)(h + r * width, depth);
        for (int v = 0; v < vectors; v++) sum[r][v] = F(add_products)(sum[r][v], w[v], same);
    }
}

/* y[row][c ...] += scale * sum_k h[row][k] * b[k][c ...] for `vectors` vectors of columns, 2 or 4. */
INLINE void F(expand_block)(const int vectors, const int rows, const ELEMENT *b, const F(hidden) *h, ELEMENT *y,
                            const int32_t *row, int64_t y_stride, int64_t outer, int64_t rank, int64_t width, float scale,
                            const ELEMENT *soon) {
    vf sum[ROWS][4] = {{{0}}};
    int64_t k = 0;
    for (; k + F(DEPTH) <= rank; k += F(DEPTH)) {
        if (soon) F(prefetch_columns)(soon + k * outer, outer, F(DEPTH));
        F(add_ranks)(F(DEPTH), vectors, rows, sum, b + k * outer, h + k, outer, width);
    }
    if (k < rank) F(add_ranks)(1, vectors, rows, sum, b + k * outer, h + k, outer, width);
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < vectors; v++) {
            ELEMENT *out = y + row[r] * y_stride + v * LANES;
            F(store)(out, F(load)(out) + scale * sum[r][v]);
        }
    }
}

INLINE void F(expand_rows)(const int rows, const ELEMENT *b, const F(hidden) *h, ELEMENT *y, const int32_t *row,
                           int64_t y_stride, int64_t outer, int64_t rank, int64_t columns, int64_t width, float scale,
                           const ELEMENT *soon) {
    int64_t c = 0;
#define BLOCK(n) F(expand_block)(n, rows, b + c, h, y + c, row, y_stride, outer, rank, width, scale, soon)
    for (; c + 4 * LANES <= columns; c += 4 * LANES) BLOCK(4);
    for (; c + 2 * LANES <= columns; c += 2 * LANES) BLOCK(2);
#undef BLOCK
    for (; c < columns; c++) {
        for (int r = 0; r < rows; r++) {
            float sum = 0;
            for (int64_t k = 0; k < rank; k++) sum += F(load1)(b + k * outer + c) * F(load1_hidden)(h + r * width + k);
            ELEMENT *out = y + row[r] * y_stride + c;
            F(store1)(out, F(load1)(out) + scale * sum);
        }
    }
}

static void F(expand)(const ELEMENT *b, const F(hidden) *h, ELEMENT *y, const int32_t *row, int64_t y_stride, int64_t outer,
                      int64_t rows, int64_t rank, int64_t columns, int64_t width, float scale, const ELEMENT *soon) {
    for (int64_t r = 0; r < rows; r += ROWS, soon = 0) {
        const int64_t count = least(ROWS, rows - r);
#define EXPAND(n) F(expand_rows)(n, b, h + r * width, y, row + r, y_stride, outer, rank, columns, width, scale, soon)
        if (count == 4) EXPAND(4);
        if (count == 3) EXPAND(3);
        if (count == 2) EXPAND(2);
        if (count == 1) EXPAND(1);
#undef EXPAND
    }
}

/* Work is cut into turns, the groups of one piece of A or B next to each other, so that a single adapter also uses every
 * thread and threads get equal shares of every adapter. This is where a turn begins to read. */
INLINE const ELEMENT *F(a_of)(const layer_t *layer, const batch_t *batch, int64_t turn) {
    const int64_t pieces = (layer->max_rank + RANKS - 1) / RANKS, piece = turn / batch->groups;
    const int64_t rank = piece / pieces * layer->max_rank + piece % pieces * RANKS;
    const int64_t slot = batch->slot[turn % batch->groups];
    return (const ELEMENT *)layer->a + (slot * layer->slices * layer->max_rank + rank) * layer->inner;
}

INLINE const ELEMENT *F(b_of)(const layer_t *layer, const batch_t *batch, int64_t turn) {
    const int64_t slot = batch->slot[turn % batch->groups];
    return (const ELEMENT *)layer->b + slot * layer->max_rank * layer->outer + turn / batch->groups * COLUMNS;
}

static void F(shrink_turns)(const layer_t *layer, const batch_t *batch, const ELEMENT *x, int64_t x_stride, F(hidden) *h,
                            int64_t from, int64_t to) {
    const int64_t cap = layer->max_rank, pieces = (cap + RANKS - 1) / RANKS, width = layer->slices * cap;
    for (int64_t t = from; t < to; t++) {
        const int64_t g = t % batch->groups, first = batch->start[g], rows = batch->start[g + 1] - first;
        const int64_t piece = t / batch->groups, k = piece % pieces * RANKS;
        F(shrink)(F(a_of)(layer, batch, t), x, h + first * width + piece / pieces * cap + k, batch->row + first, x_stride,
                  layer->inner, rows, least(RANKS, batch->rank[g] - k), width,
                  t + 1 < to ? F(a_of)(layer, batch, t + 1) : 0);
    }
}

static void F(expand_turns)(const layer_t *layer, const batch_t *batch, const F(hidden) *h, ELEMENT *y, int64_t y_stride,
                            float scale, int64_t from, int64_t to) {
    const int64_t cap = layer->max_rank, width = layer->slices * cap;
    for (int64_t t = from; t < to; t++) {
        const int64_t g = t % batch->groups, first = batch->start[g], rows = batch->start[g + 1] - first;
        const int64_t begin = t / batch->groups * COLUMNS;
        for (int64_t s = 0; s < layer->slices; s++) { /* a turn may touch two slices */
            const int64_t c = most(layer->offset[s], begin), columns = least(layer->offset[s + 1], begin + COLUMNS) - c;
            if (columns > 0)
                F(expand)(F(b_of)(layer, batch, t) + c - begin, h + first * width + s * cap, y + c, batch->row + first,
                          y_stride, layer->outer, rows, batch->rank[g], columns, width, scale,
                          t + 2 < to ? F(b_of)(layer, batch, t + 2) : 0);
        }
    }
}

/* `scratch` holds rows * slices * max_rank floats; x and y are row-major with the given strides. */
void F(tunedock_lora)(const layer_t *layer, const batch_t *batch, const ELEMENT *x, int64_t x_stride, ELEMENT *y,
                      int64_t y_stride, float scale, void *scratch) {
    const int64_t pieces = (layer->max_rank + RANKS - 1) / RANKS;
    const int64_t shrinks = layer->slices * pieces * batch->groups;
    const int64_t expands = (layer->outer + COLUMNS - 1) / COLUMNS * batch->groups;
#pragma omp parallel
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
        const int64_t from = expands * me / all, to = expands * (me + 1) / all;
        F(shrink_turns)(layer, batch, x, x_stride, scratch, shrinks * me / all, shrinks * (me + 1) / all);
        for (int64_t t = from; t < least(from + 2, to); t++)
            F(prefetch_columns)(F(b_of)(layer, batch, t), layer->outer, batch->rank[t % batch->groups]);
#pragma omp barrier
        F(expand_turns)(layer, batch, scratch, y, y_stride, scale, from, to);
    }
}
