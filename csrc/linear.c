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

enum {
    BLOCK_ROWS = 192, /* the most rows of x of a task: their sums take 24 KB */
    FETCH_ROWS = 128, /* what comes after a panel of that many rows is wanted soon; most keys have fewer */
    COPY_ROWS = 48    /* from here on it pays to copy the columns of a tile to where no others stand between them */
};

#ifdef AVX512
#define TARGET AVX512
#define NAME(f) f##_avx512
#define WIDTH 16
#define MOST_ROWS 12
#include "tile.h"
#define TARGET AVX2
#define NAME(f) f##_avx2
#define WIDTH 8
#define MOST_ROWS 6
#include "tile.h"
#endif
#define TARGET
#define NAME(f) f##_baseline
#define WIDTH 4
#define MOST_ROWS 6
#include "tile.h"

void multiply(lanes *sum, const float *x, size_t stride, const void *panel, size_t n, int type, size_t rows)
{
    memset(sum, 0, rows * sizeof *sum);
    AT_LEVEL(add_products, (sum, x, stride, panel, n, 0, type, rows))
}

void add_live(lanes *sum, const lanes *x, const void *panel, uint32_t live, int type, size_t rows)
{
    if (live != 0)
        AT_LEVEL(add_products, (sum, x[0], DCP_LANES, panel, 32 - (size_t)__builtin_clz(live), live, type, rows))
}

/* y = sum * scale + bias + add, for the columns of one panel. */
KERNEL(static, finish, (float *y, const lanes *sum, const float *add, const dcp_matrix *w, size_t panel, size_t rows),
       (y, sum, add, w, panel, rows))
{
    const size_t at = panel * DCP_LANES, left = w->n_out - at, width = left < DCP_LANES ? left : DCP_LANES;
    const size_t stride = dcp_stride(w->n_out);
    const float *scale = w->scale, *bias = w->bias;
    for (size_t r = 0; r < rows; r++) {
        const size_t first = r * stride + at;
        for (size_t j = 0; j < width; j++)
            y[first + j] = sum[r][j] * (scale ? scale[at + j] : 1) + (bias ? bias[at + j] : 0) +
                           (add ? add[first + j] : 0);
    }
}

/* dcp_linear for one panel of columns, and at most BLOCK_ROWS. */
static void linear_panel(float *y, const float *x, const float *add, const dcp_matrix *w, size_t panel, size_t rows)
{
    lanes sum[BLOCK_ROWS];
    const void *numbers = (const char *)w->panel + panel * panel_bytes(w->n_in, w->type);
    multiply(sum, x, dcp_stride(w->n_in), numbers, w->n_in, w->type, rows);
    finish(y, sum, add, w, panel, rows);
}

void dcp_linear(float *y, const float *x, const float *add, const dcp_matrix *w, size_t rows, size_t threads)
{
    const size_t panels = (w->n_out + DCP_LANES - 1) / DCP_LANES, blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const size_t each = blocks ? (rows + blocks - 1) / blocks : 0;
    threads = threads_for(rows * w->n_in * w->n_out, threads);
#pragma omp parallel for num_threads((int)threads) schedule(dynamic)
    for (size_t i = 0; i < blocks * panels; i++) { /* small tasks: a thread that comes late finds less to do */
        const size_t row = i / panels * each, at = row * dcp_stride(w->n_out), left = rows - row;
        linear_panel(y + at, x + row * dcp_stride(w->n_in), add ? add + at : NULL, w, i % panels,
                     left < each ? left : each);
    }
}
