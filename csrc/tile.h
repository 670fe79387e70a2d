/* tile.h - products in tiles that fit the registers. linear.c includes it once for each instruction set, with
 *   TARGET     the attribute that compiles a function for that instruction set
 *   NAME(f)    f with the instruction set behind it
 *   WIDTH      floats in a vector register
 *   MOST_ROWS  the most rows of a tile: two vectors of sums a row fit the registers, beside what is multiplied */

#define COLUMNS (2 * WIDTH)         /* of a tile */
#define PIECE (4096 / COLUMNS)      /* rows of a panel whose COLUMNS take 16 KB: half of the first cache */
#define FEW_ROWS (WIDTH < 8 ? 1 : 2) /* rows whose sums fit the registers for all columns of a panel */
#define vector NAME(vector)
#define words NAME(words)

typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t words __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

/* Numbers j .. j + WIDTH - 1 of row k of a panel, as `lane` gives them. Rows of words are `apart` words apart. */
TARGET INLINE vector NAME(lanes_of)(const void *panel, size_t apart, size_t k, size_t j, int type)
{
    const size_t size = (size_t)4 >> type, shared = (size_t)1 << type;
    const words bits = *(const words *)((const float *)panel + k / shared * apart + j);
    const words high = bits << (int32_t)(8 * size * (shared - 1 - k % shared));
    if (type == DCP_FLOAT32)
        return (vector)bits;
    if (type == DCP_INT8)
        return __builtin_convertvector(high >> 24, vector);
    return (vector)(high >> 3 & (int32_t)0x8fffe000) * 0x1p112f;
}

/* sum[r] += x[r * stride] * row k of the panel, for each of the rows. */
TARGET INLINE void NAME(add_row)(vector sum[MOST_ROWS][DCP_LANES / WIDTH], const float *x, size_t stride,
                                 const void *panel, size_t apart, size_t k, int type, const size_t rows,
                                 const size_t vectors)
{
    vector w[DCP_LANES / WIDTH];
#pragma GCC unroll 8
    for (size_t c = 0; c < vectors; c++)
        w[c] = NAME(lanes_of)(panel, apart, k, c * WIDTH, type);
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (size_t c = 0; c < vectors; c++)
            sum[r][c] += x[r * stride] * w[c];
}

/* own = sum, or sum = own: vectors in registers and the sums [rows, 32] that they stand for. */
TARGET INLINE void NAME(load)(vector own[MOST_ROWS][DCP_LANES / WIDTH], const float *sum, const size_t rows,
                              const size_t vectors)
{
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (size_t c = 0; c < vectors; c++)
            own[r][c] = *(const vector *)(sum + r * DCP_LANES + c * WIDTH);
}

TARGET INLINE void NAME(store)(float *sum, vector own[MOST_ROWS][DCP_LANES / WIDTH], const size_t rows,
                               const size_t vectors)
{
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (size_t c = 0; c < vectors; c++)
            *(vector *)(sum + r * DCP_LANES + c * WIDTH) = own[r][c];
}

/* sum[r] += x[r, k] * row k of the panel, for k < n; if `live` is not 0, for its set bits k instead. type, rows and
 * vectors are constants: the sums stay in registers. Meanwhile fetches from `next` on, `lines` cache lines a step. */
TARGET INLINE void NAME(tile)(float *sum, const float *x, size_t stride, const void *panel, size_t apart, size_t n,
                              uint32_t live, const char *next, size_t lines, int type, const size_t rows,
                              const size_t vectors)
{
    const size_t step = type == DCP_FLOAT32 && rows > 2 ? 2 : 4; /* of 4, it is known which part of a word is whose */
    vector own[MOST_ROWS][DCP_LANES / WIDTH];
    NAME(load)(own, sum, rows, vectors);
    if (live != 0)
        for (uint32_t bits = live; bits != 0; bits &= bits - 1) {
            const size_t k = (size_t)__builtin_ctz(bits);
            NAME(add_row)(own, x + k, stride, panel, apart, k, type, rows, vectors);
        }
    else {
        size_t k = 0;
        for (; k + step <= n; k += step) {
            for (size_t i = 0; i < lines; i++) {
                __builtin_prefetch(next, 0, 2);
                next += 64;
            }
#pragma GCC unroll 4
            for (size_t i = 0; i < step; i++)
                NAME(add_row)(own, x + k + i, stride, panel, apart, k + i, type, rows, vectors);
        }
        for (; k < n; k++)
            NAME(add_row)(own, x + k, stride, panel, apart, k, type, rows, vectors);
    }
    NAME(store)(sum, own, rows, vectors);
}

#define CASE(rows) \
    case rows: \
        NAME(tile)(sum, x, stride, panel, apart, n, live, next, lines, DCP_FLOAT32, rows, 2); \
        break;

/* NAME(tile) for COLUMNS of float32, and the rows of one tile. */
TARGET static void NAME(one_tile)(float *sum, const float *x, size_t stride, const float *panel, size_t apart, size_t n,
                                  uint32_t live, const char *next, size_t lines, size_t rows)
{
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MOST_ROWS == 12
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
}
#undef CASE

/* Fetches 8 KB ahead where there is enough arithmetic to hide it. */
#define CASE(type, rows) \
    case 4 * type + rows: \
        NAME(tile)(sum, x, stride, panel, DCP_LANES, n, live, (const char *)panel + 8192, \
                   rows > 2 >> type ? 8 >> type : 0, type, rows, DCP_LANES / WIDTH); \
        break;

/* NAME(tile) for all columns of a panel of any type, and FEW_ROWS. */
TARGET static void NAME(few_rows)(float *sum, const float *x, size_t stride, const void *panel, size_t n, uint32_t live,
                                  int type, size_t rows)
{
    switch (4 * (size_t)type + rows) {
        CASE(DCP_FLOAT32, 1) CASE(DCP_FLOAT16, 1) CASE(DCP_INT8, 1)
#if WIDTH >= 8
        CASE(DCP_FLOAT32, 2) CASE(DCP_FLOAT16, 2) CASE(DCP_INT8, 2)
#endif
    }
}
#undef CASE

#define CASE(type, rows) \
    case 8 * type + rows: \
        NAME(tile)(sum, x, stride, panel, DCP_LANES, n, live, next, 2 * lines, type, rows, 2); \
        break;

/* NAME(tile) for COLUMNS of float16 or int8, and so few rows that they are decoded on the way. */
TARGET static void NAME(packed_tile)(float *sum, const float *x, size_t stride, const float *panel, size_t n,
                                     uint32_t live, const char *next, size_t lines, int type, size_t rows)
{
    switch (8 * (size_t)type + rows) {
        CASE(DCP_FLOAT16, 2) CASE(DCP_FLOAT16, 3) CASE(DCP_FLOAT16, 4)
        CASE(DCP_INT8, 2) CASE(DCP_INT8, 3) CASE(DCP_INT8, 4)
    }
}
#undef CASE

/* The COLUMNS of n rows of a panel, from column j on, as floats [n, COLUMNS]. */
TARGET INLINE void NAME(decode)(float *restrict decoded, const void *panel, size_t n, size_t j, int type)
{
#pragma GCC unroll 4
    for (size_t k = 0; k < n; k++)
#pragma GCC unroll 2
        for (size_t c = 0; c < COLUMNS; c += WIDTH)
            *(vector *)(decoded + k * COLUMNS + c) = NAME(lanes_of)(panel, DCP_LANES, k, j + c, type);
}

/* add_products for n <= PIECE: COLUMNS by COLUMNS, so that they stay in the first cache from tile to tile. */
TARGET static void NAME(add_piece)(lanes *sum, const float *x, size_t stride, const void *panel, size_t n,
                                   uint32_t live, int type, size_t rows)
{
    float decoded[PIECE * COLUMNS];
    if (rows <= FEW_ROWS) {
        NAME(few_rows)(sum[0], x, stride, panel, n, live, type, rows);
        return;
    }
    const int packed = type != DCP_FLOAT32 && rows <= 4;
    const int direct = packed || (type == DCP_FLOAT32 && (rows < COPY_ROWS || COLUMNS == DCP_LANES));
    const size_t all_tiles = DCP_LANES / COLUMNS * ((rows + MOST_ROWS - 1) / MOST_ROWS);
    const char *next = (const char *)panel + panel_bytes(n, type);
    size_t fetch = n >= FETCH_ROWS ? (size_t)4 >> type : 0; /* lines for two rows: evenly the next piece */
    const size_t lines = (fetch + all_tiles - 1) / all_tiles;
    for (size_t j = 0; j < DCP_LANES; j += COLUMNS) {
        const float *columns = (const float *)panel + j;
        if (!direct && type == DCP_FLOAT32)
            NAME(decode)(decoded, panel, n, j, DCP_FLOAT32);
        else if (!direct && type == DCP_FLOAT16)
            NAME(decode)(decoded, panel, n, j, DCP_FLOAT16);
        else if (!direct)
            NAME(decode)(decoded, panel, n, j, DCP_INT8);
        for (size_t row = 0, count; row < rows; row += count) {
            const size_t left = rows - row, tiles = (left + MOST_ROWS - 1) / MOST_ROWS;
            count = (left + tiles - 1) / tiles;
            if (packed)
                NAME(packed_tile)(sum[row] + j, x + row * stride, stride, columns, n, live, next, fetch ? lines : 0,
                                  type, count);
            else
                NAME(one_tile)(sum[row] + j, x + row * stride, stride, direct ? columns : decoded,
                               direct ? DCP_LANES : COLUMNS, n, live, next, fetch ? lines : 0, count);
            next += n / 2 * lines * 64;
            fetch -= fetch ? lines : 0;
        }
    }
}

/* sum[r] += x[r, k] * row k of the panel, for k < n; if `live` is not 0, for its set bits k instead, and n <= 32. Piece
 * by piece: a sum that waits for the next one is stored as float32, with the same bits. */
TARGET static void NAME(add_products)(lanes *sum, const float *x, size_t stride, const void *panel, size_t n,
                                      uint32_t live, int type, size_t rows)
{
    for (size_t k = 0; k < n; k += PIECE)
        NAME(add_piece)(sum, x + k, stride, (const char *)panel + offset(k, 0, type), n - k < PIECE ? n - k : PIECE,
                        live, type, rows);
}

#undef COLUMNS
#undef PIECE
#undef FEW_ROWS
#undef vector
#undef words
#undef TARGET
#undef NAME
#undef WIDTH
#undef MOST_ROWS
