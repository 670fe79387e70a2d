/* linear.c - matrix products over packed weights. */

#include "common.h"

size_t dcp_stride(size_t n)
{
    return n % 1024 == 0 ? n + 16 : n;
}

/* sum[r] += x[r * stride] * row k, for each of the rows. Unrolled: the sums then stay in registers. */
INLINE void add_row(float (*restrict sum)[DCP_LANES], const float *restrict x, size_t stride, const void *restrict panel,
                    size_t k, int type, const size_t rows)
{
    float decoded[DCP_LANES];
    for (size_t j = 0; j < DCP_LANES && type != DCP_FLOAT32; j++)
        decoded[j] = lane(panel, k, j, type);
    const float *w = type == DCP_FLOAT32 ? (const float *)panel + k * DCP_LANES : decoded;
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < DCP_LANES; j++)
            sum[r][j] += x[r * stride + k] * w[j];
}

INLINE void multiply(dcp_tile sum, const float *restrict x, size_t stride, const void *restrict panel, size_t n, int type,
                     const size_t rows)
{
    dcp_tile own;
    memset(own, 0, rows * sizeof *own);
    size_t k = 0;
    for (; k + 4 <= n; k += 4) {
        /* Where there is work enough meanwhile, fetch what is 8 KB ahead as far as the second cache; keys end before. */
        for (size_t i = 0; i < (size_t)8 >> type && rows > (size_t)4 >> 2 * type && n > 128; i++)
            __builtin_prefetch((const char *)panel + offset(k, 0, type) + 64 * (128 + i), 0, 2);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) /* where in its words a number stands is then known beforehand */
            add_row(own, x, stride, panel, k + i, type, rows);
    }
    for (; k < n; k++)
        add_row(own, x, stride, panel, k, type, rows);
    memcpy(sum, own, rows * sizeof *sum);
}

INLINE void add_live(dcp_tile sum, const float *restrict x, const void *restrict panel, uint32_t live, int type,
                     const size_t rows)
{
    dcp_tile own;
    memcpy(own, sum, rows * sizeof *sum);
    for (; live; live &= live - 1)
        add_row(own, x, DCP_LANES, panel, (size_t)__builtin_ctz(live), type, rows);
    memcpy(sum, own, rows * sizeof *sum);
}

/* Has the compiler make KERNEL(type, rows) for each type and number of rows, and calls the one that is wanted. */
#define CASE(KERNEL, type, rows) case 16 * type + rows: KERNEL(type, rows); break;
#define CASES(KERNEL, type) \
    CASE(KERNEL, type, 1) CASE(KERNEL, type, 2) CASE(KERNEL, type, 4) CASE(KERNEL, type, 8) CASE(KERNEL, type, 12)
#define DISPATCH(KERNEL) \
    switch (16 * (size_t)type + rows) { \
        CASES(KERNEL, DCP_FLOAT32) CASES(KERNEL, DCP_FLOAT16) CASES(KERNEL, DCP_INT8) \
    }
#define MULTIPLY(type, rows) multiply(sum, x, stride, panel, n, type, rows)
#define ADD_LIVE(type, rows) add_live(sum, x[0], panel, live, type, rows)

CLONES void dcp_multiply(dcp_tile sum, const float *x, size_t stride, const void *panel, size_t n, int type, size_t rows)
{
    DISPATCH(MULTIPLY)
}

CLONES void dcp_add_live(dcp_tile sum, const dcp_tile x, const void *panel, uint32_t live, int type, size_t rows)
{
    DISPATCH(ADD_LIVE)
}

/* One panel of columns. */
CLONES void dcp_linear_panel(float *y, const float *x, const float *add, const dcp_matrix *w, size_t panel, size_t rows)
{
    const size_t at = panel * DCP_LANES, left = w->n_out - at, width = left < DCP_LANES ? left : DCP_LANES;
    const size_t stride = dcp_stride(w->n_in), y_stride = dcp_stride(w->n_out);
    const void *numbers = (const char *)w->panel + panel * panel_bytes(w->n_in, w->type);
    const float *scale = w->scale, *bias = w->bias;
    dcp_tile sum;
    for (size_t row = 0, n; row < rows; row += n) {
        n = tile_rows(rows - row);
        dcp_multiply(sum, x + row * stride, stride, numbers, w->n_in, w->type, n);
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
    threads = dcp_threads_for(rows * w->n_in * w->n_out, threads);
#pragma omp parallel for num_threads((int)threads) schedule(guided)
    for (size_t panel = 0; panel < panels; panel++)
        dcp_linear_panel(y, x, add, w, panel, rows);
}
