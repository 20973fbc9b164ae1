/* The matrices of an adapter file into their places in a packed adapter: B transposed and scaled, everything in bfloat16.
 * One call for all of them, which needs no Python meanwhile: other threads have the interpreter. */
#include <stdint.h>
#include <string.h>

#define BLOCK 32 /* rows of B turned at once: a cache line of the target */

typedef struct {
    const void *from; /* [rows][columns] */
    uint16_t *to;
    int64_t rows, columns;
    int64_t stride; /* elements from one row of the target to the next; the target of a turned matrix has `columns` rows */
    float scale;
    int16_t wide, turned; /* the source is float32; B is turned */
} piece_t;

static inline uint16_t take(const piece_t *piece, int64_t at) {
    uint32_t bits;
    float value;
    if (piece->wide) {
        value = ((const float *)piece->from)[at];
    } else {
        bits = (uint32_t)((const uint16_t *)piece->from)[at] << 16;
        memcpy(&value, &bits, sizeof value);
    }
    value *= piece->scale;
    if (value != value) return 0x7fc0; /* rounding could turn NaN into zero */
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16); /* to nearest even */
}

static void copy(const piece_t *piece) {
    for (int64_t r = 0; r < piece->rows; r++) {
        uint16_t *to = piece->to + r * piece->stride;
        if (!piece->wide && piece->scale == 1)
            memcpy(to, (const uint16_t *)piece->from + r * piece->columns, sizeof *to * piece->columns);
        else
            for (int64_t c = 0; c < piece->columns; c++) to[c] = take(piece, r * piece->columns + c);
    }
}

static void turn(const piece_t *piece) {
    const uint16_t *from = piece->from;
    int64_t r = 0;
    for (; r + BLOCK <= piece->rows; r += BLOCK) {
        for (int64_t c = 0; c < piece->columns; c++) {
            uint16_t line[BLOCK];
            if (!piece->wide && piece->scale == 1)
                for (int i = 0; i < BLOCK; i++) line[i] = from[(r + i) * piece->columns + c];
            else
                for (int i = 0; i < BLOCK; i++) line[i] = take(piece, (r + i) * piece->columns + c);
            memcpy(piece->to + c * piece->stride + r, line, sizeof line);
        }
    }
    for (; r < piece->rows; r++)
        for (int64_t c = 0; c < piece->columns; c++) piece->to[c * piece->stride + r] = take(piece, r * piece->columns + c);
}

void tunedock_pack(const piece_t *pieces, int64_t num) {
    for (int64_t i = 0; i < num; i++) pieces[i].turned ? turn(pieces + i) : copy(pieces + i);
}
