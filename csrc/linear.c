/* linear.c - matrix products over packed weights. */

#include "common.h"

size_t dcp_stride(size_t n)
{
    return n % 1024 == 0 ? n + 16 : n;
}

size_t dcp_matrix_bytes(size_t n_in, size_t n_out)
{
    return (n_out + DCP_LANES - 1) / DCP_LANES * panel_bytes(n_in, DCP_FLOAT32);
}

void dcp_matrix_pack(dcp_matrix *matrix, float *panels, const float *w, size_t n_in, size_t n_out, const float *bias)
{
    *matrix = (dcp_matrix){.n_in = n_in, .n_out = n_out, .type = DCP_FLOAT32, .panel = panels, .bias = bias};
    memset(panels, 0, dcp_matrix_bytes(n_in, n_out));
    for (size_t at = 0; at < n_out; at += DCP_LANES) {
        const size_t left = n_out - at, width = left < DCP_LANES ? left : DCP_LANES;
        for (size_t k = 0; k < n_in; k++)
            memcpy(panels + at * n_in + k * DCP_LANES, w + k * n_out + at, width * sizeof *w);
    }
}

/* sum[r] += x[r * stride] * row k of the panel, for each of the rows. Unrolled, so that the sums stay in registers. */
INLINE void add_row(lanes *restrict sum, const float *restrict x, size_t stride, const void *restrict panel, size_t k,
                    int type, const size_t rows)
{
    lanes decoded;
    if (type != DCP_FLOAT32)
        for (size_t j = 0; j < DCP_LANES; j++)
            decoded[j] = lane(panel, k, j, type);
    const float *w = type == DCP_FLOAT32 ? (const float *)panel + k * DCP_LANES : decoded;
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < DCP_LANES; j++)
            sum[r][j] += x[r * stride + k] * w[j];
}

/* Prefetches the numbers 8 KB after row k into the second cache, a part for each four rows. Only if there is enough
 * arithmetic to hide it; and not for keys, whose panels are shorter. */
INLINE void prefetch_ahead(const void *panel, size_t k, size_t n, int type, const size_t rows)
{
    if (n <= 128 || rows <= (size_t)4 >> 2 * type)
        return;
    for (size_t i = 0; i < (size_t)8 >> type; i++)
        __builtin_prefetch((const char *)panel + offset(k, 0, type) + 64 * (128 + i), 0, 2);
}

/* multiply_tile for one type and one number of rows, both constants. */
INLINE void multiply_by(tile sum, const float *restrict x, size_t stride, const void *restrict panel, size_t n,
                        int type, const size_t rows)
{
    tile own;
    memset(own, 0, rows * sizeof *own);
    size_t k = 0;
    for (; k + 4 <= n; k += 4) {
        prefetch_ahead(panel, k, n, type, rows);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) /* the compiler then knows which part of a word holds row k + i */
            add_row(own, x, stride, panel, k + i, type, rows);
    }
    for (; k < n; k++)
        add_row(own, x, stride, panel, k, type, rows);
    memcpy(sum, own, rows * sizeof *sum);
}

/* add_live for one type and one number of rows, both constants. */
INLINE void add_live_by(tile sum, const float *restrict x, const void *restrict panel, uint32_t live, int type,
                        const size_t rows)
{
    tile own;
    memcpy(own, sum, rows * sizeof *sum);
    for (uint32_t bits = live; bits != 0; bits &= bits - 1)
        add_row(own, x, DCP_LANES, panel, (size_t)__builtin_ctz(bits), type, rows);
    memcpy(sum, own, rows * sizeof *sum);
}

/* Has the compiler make KERNEL(type, rows) for each type and number of rows, and calls the one that is wanted. */
#define CASE(KERNEL, type, rows) \
    case 16 * type + rows: \
        KERNEL(type, rows); \
        break;
#define CASES(KERNEL, type) \
    CASE(KERNEL, type, 1) CASE(KERNEL, type, 2) CASE(KERNEL, type, 4) CASE(KERNEL, type, 8) CASE(KERNEL, type, 12)
#define DISPATCH(KERNEL) \
    switch (16 * (size_t)type + rows) { \
        CASES(KERNEL, DCP_FLOAT32) CASES(KERNEL, DCP_FLOAT16) CASES(KERNEL, DCP_INT8) \
    }
#define MULTIPLY(type, rows) multiply_by(sum, x, stride, panel, n, type, rows)
#define ADD_LIVE(type, rows) add_live_by(sum, x[0], panel, live, type, rows)

CLONES void multiply_tile(tile sum, const float *x, size_t stride, const void *panel, size_t n, int type, size_t rows)
{
    DISPATCH(MULTIPLY)
}

CLONES void add_live(tile sum, const tile x, const void *panel, uint32_t live, int type, size_t rows)
{
    DISPATCH(ADD_LIVE)
}

/* dcp_linear for one panel of columns. */
CLONES static void linear_panel(float *y, const float *x, const float *add, const dcp_matrix *w, size_t panel,
                                size_t rows)
{
    const size_t at = panel * DCP_LANES, left = w->n_out - at, width = left < DCP_LANES ? left : DCP_LANES;
    const size_t stride = dcp_stride(w->n_in), y_stride = dcp_stride(w->n_out);
    const void *numbers = (const char *)w->panel + panel * panel_bytes(w->n_in, w->type);
    const float *scale = w->scale, *bias = w->bias;
    tile sum;
    for (size_t row = 0, n; row < rows; row += n) {
        n = tile_rows(rows - row);
        multiply_tile(sum, x + row * stride, stride, numbers, w->n_in, w->type, n);
        for (size_t r = 0; r < n; r++) {
            const size_t first = (row + r) * y_stride + at;
            for (size_t j = 0; j < width; j++)
                y[first + j] = sum[r][j] * (scale ? scale[at + j] : 1) + (bias ? bias[at + j] : 0) +
                               (add ? add[first + j] : 0);
        }
    }
}

void dcp_linear(float *y, const float *x, const float *add, const dcp_matrix *w, size_t rows, size_t threads)
{
    const size_t panels = (w->n_out + DCP_LANES - 1) / DCP_LANES;
    threads = threads_for(rows * w->n_in * w->n_out, threads);
#pragma omp parallel for num_threads((int)threads) schedule(guided)
    for (size_t panel = 0; panel < panels; panel++)
        linear_panel(y, x, add, w, panel, rows);
}
