/* Included once for each element type; see lora.c. x is float32 here, `inner` floats a row; h has `width` floats a row. */

/* h[row][k] for `ks` rows of A and `rows` rows of x. */
INLINE void F(shrink_block)(const int ks, const int rows, const ELEMENT *a, const float *x, float *h, int64_t inner,
                            int64_t width) {
    vf sum[4][ROWS] = {{{0}}};
    int64_t i = 0;
    for (; i + LANES <= inner; i += LANES) {
        vf w[4];
        for (int k = 0; k < ks; k++) w[k] = F(load)(a + k * inner + i);
        for (int r = 0; r < rows; r++) {
            vf v = load_f32(x + r * inner + i);
            for (int k = 0; k < ks; k++) sum[k][r] += w[k] * v;
        }
    }
    for (int k = 0; k < ks; k++) {
        for (int r = 0; r < rows; r++) {
            float total = sum_of(sum[k][r]);
            for (int64_t j = i; j < inner; j++) total += F(load1)(a + k * inner + j) * x[r * inner + j];
            h[r * width + k] = total;
        }
    }
}

INLINE void F(shrink_rows)(const int rows, const ELEMENT *a, const float *x, float *h, int64_t inner, int64_t ks,
                           int64_t width) {
    int64_t k = 0;
    for (; k + 4 <= ks; k += 4) F(shrink_block)(4, rows, a + k * inner, x, h + k, inner, width);
    for (; k < ks; k++) F(shrink_block)(1, rows, a + k * inner, x, h + k, inner, width);
}

static void F(shrink)(const ELEMENT *a, const float *x, float *h, int64_t inner, int64_t rows, int64_t ks, int64_t width) {
    int64_t r = 0;
    for (; r + ROWS <= rows; r += ROWS) F(shrink_rows)(ROWS, a, x + r * inner, h + r * width, inner, ks, width);
    if (rows - r == 3) F(shrink_rows)(3, a, x + r * inner, h + r * width, inner, ks, width);
    if (rows - r == 2) F(shrink_rows)(2, a, x + r * inner, h + r * width, inner, ks, width);
    if (rows - r == 1) F(shrink_rows)(1, a, x + r * inner, h + r * width, inner, ks, width);
}

/* y[row][c ...] += scale * sum_k h[row][k] * b[k][c ...] for `vectors` vectors of columns. */
INLINE void F(expand_block)(const int vectors, const int rows, const ELEMENT *b, const float *h, ELEMENT *y,
                            const int32_t *row, int64_t y_stride, int64_t outer, int64_t rank, int64_t width, float scale) {
    vf sum[ROWS][4] = {{{0}}};
    for (int64_t k = 0; k < rank; k++) {
        for (int v = 0; v < vectors; v++) {
            vf w = F(load)(b + k * outer + v * LANES);
            for (int r = 0; r < rows; r++) sum[r][v] += w * h[r * width + k];
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < vectors; v++) {
            ELEMENT *out = y + row[r] * y_stride + v * LANES;
            F(store)(out, F(load)(out) + scale * sum[r][v]);
        }
    }
}

INLINE void F(expand_rows)(const int rows, const ELEMENT *b, const float *h, ELEMENT *y, const int32_t *row,
                           int64_t y_stride, int64_t outer, int64_t rank, int64_t columns, int64_t width, float scale) {
    int64_t c = 0;
    for (; c + 4 * LANES <= columns; c += 4 * LANES)
        F(expand_block)(4, rows, b + c, h, y + c, row, y_stride, outer, rank, width, scale);
    for (; c + LANES <= columns; c += LANES)
        F(expand_block)(1, rows, b + c, h, y + c, row, y_stride, outer, rank, width, scale);
    for (; c < columns; c++) {
        for (int r = 0; r < rows; r++) {
            float sum = 0;
            for (int64_t k = 0; k < rank; k++) sum += F(load1)(b + k * outer + c) * h[r * width + k];
            ELEMENT *out = y + row[r] * y_stride + c;
            F(store1)(out, F(load1)(out) + scale * sum);
        }
    }
}

static void F(expand)(const ELEMENT *b, const float *h, ELEMENT *y, const int32_t *row, int64_t y_stride, int64_t outer,
                      int64_t rows, int64_t rank, int64_t columns, int64_t width, float scale) {
    int64_t r = 0;
#define EXPAND(n) F(expand_rows)(n, b, h + r * width, y, row + r, y_stride, outer, rank, columns, width, scale)
    for (; r + ROWS <= rows; r += ROWS) EXPAND(ROWS);
    if (rows - r == 3) EXPAND(3);
    if (rows - r == 2) EXPAND(2);
    if (rows - r == 1) EXPAND(1);
#undef EXPAND
}

/* `scratch` holds rows * (inner + slices * max_rank) floats; x and y are row-major with the given strides. */
void F(tunedock_lora)(const layer_t *layer, const batch_t *batch, const ELEMENT *x, int64_t x_stride, ELEMENT *y,
                      int64_t y_stride, float scale, float *scratch) {
    const int64_t inner = layer->inner, outer = layer->outer, slices = layer->slices, cap = layer->max_rank;
    const int64_t rows = batch->start[batch->groups], width = slices * cap;
    float *wide = scratch, *h = scratch + rows * inner;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const ELEMENT *from = x + batch->row[r] * x_stride;
            int64_t i = 0;
            for (; i + LANES <= inner; i += LANES) store_f32(wide + r * inner + i, F(load)(from + i));
            for (; i < inner; i++) wide[r * inner + i] = F(load1)(from + i);
        }
        /* All threads share every group, so that a single adapter also uses every core: eight ranks a turn... */
        for (int64_t g = 0; g < batch->groups; g++) {
            const int64_t first = batch->start[g], count = batch->start[g + 1] - first, rank = batch->rank[g];
            const int64_t turns = (rank + 7) / 8;
            const ELEMENT *a = (const ELEMENT *)layer->a + (int64_t)batch->slot[g] * width * inner;
#pragma omp for schedule(static) nowait
            for (int64_t t = 0; t < slices * turns; t++) {
                const int64_t k = t % turns * 8, at = t / turns * cap + k;
                F(shrink)(a + at * inner, wide + first * inner, h + first * width + at, inner, count, least(8, rank - k), width);
            }
        }
#pragma omp barrier
        /* ... and 64 columns a turn. A turn may touch two slices. */
        for (int64_t g = 0; g < batch->groups; g++) {
            const int64_t first = batch->start[g], count = batch->start[g + 1] - first;
            const ELEMENT *b = (const ELEMENT *)layer->b + (int64_t)batch->slot[g] * cap * outer;
#pragma omp for schedule(static) nowait
            for (int64_t t = 0; t < (outer + 63) / 64; t++) {
                for (int64_t s = 0; s < slices; s++) {
                    const int64_t from = layer->offset[s] > t * 64 ? layer->offset[s] : t * 64;
                    const int64_t columns = least(layer->offset[s + 1], (t + 1) * 64) - from;
                    if (columns > 0)
                        F(expand)(b + from, h + first * width + s * cap, y + from, batch->row + first, y_stride, outer, count,
                                  batch->rank[g], columns, width, scale);
                }
            }
        }
    }
}
