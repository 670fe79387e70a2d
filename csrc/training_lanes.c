/* training_lanes.c - arrays with a query in each lane: transposing, gathering, products, softmax. */

#include "training_lanes.h"

KERNEL(extern, transpose, (float *transposed, const float *x, size_t stride, size_t n, size_t D),
       (transposed, x, stride, n, D))
{
    for (size_t d = 0; d < D; d++)
        for (size_t i = 0; i < n; i++)
            transposed[d * n + i] = x[i * stride + d];
}

void gather_rows(float *rows, const float *x, size_t stride, const uint32_t *live, size_t N, size_t D)
{
    for (size_t i = 0; i < N; i++)
        memcpy(rows + i * D, x + live[i] * stride, D * sizeof *rows);
}

KERNEL(extern, gather_columns, (float *columns, const float *transposed, size_t T, const uint32_t *live, size_t N,
                                size_t D), (columns, transposed, T, live, N, D))
{
    for (size_t d = 0; d < D; d++)
        for (size_t i = 0; i < N; i++)
            columns[d * N + i] = transposed[d * T + live[i]];
}

void load_rows(lanes *transposed, const float *x, size_t stride, float factor, size_t n, size_t D)
{
    lanes *panel = transposed + D;
    memset(transposed, 0, group_lanes(D) * sizeof *transposed);
    for (size_t j = 0; j < n; j++)
        for (size_t d = 0; d < D; d++) {
            transposed[d][j] = x[j * stride + d] * factor;
            panel[d / DCP_LANES * DCP_LANES + j][d % DCP_LANES] = transposed[d][j];
        }
}

void multiply_rows(lanes *y, const float *x, size_t stride, const lanes *panel, size_t n, size_t rows)
{
    multiply(y, x, stride, panel, n, DCP_FLOAT32, rows);
}

/* dx[live[r]] += the first `width` numbers of sum[r]. */
KERNEL(static, add_to_rows, (float *dx, size_t stride, const tile sum, const uint32_t *live, size_t rows, size_t width),
       (dx, stride, sum, live, rows, width))
{
    for (size_t r = 0; r < rows; r++)
        for (size_t d = 0; d < width; d++)
            dx[live[r] * stride + d] += sum[r][d];
}

void add_product(float *dx, size_t stride, const lanes *p, const lanes *panels, const uint32_t *live, size_t N,
                 size_t D)
{
    tile sum;
    for (size_t d = 0; d < D; d += DCP_LANES)
        for (size_t key = 0, rows; key < N; key += rows) {
            rows = tile_rows(N - key);
            multiply(sum, p[key], DCP_LANES, panels + d, DCP_LANES, DCP_FLOAT32, rows);
            add_to_rows(dx + d, stride, sum, live + key, rows, D - d < DCP_LANES ? D - d : DCP_LANES);
        }
}

KERNEL(extern, softmax_down, (lanes *a, const lanes *log_i, float *log_sum, size_t N), (a, log_i, log_sum, N))
{
    lanes most, sum = {0};
    for (size_t j = 0; j < DCP_LANES; j++)
        most[j] = -INFINITY;
    for (size_t key = 0; key < N; key++)
        for (size_t j = 0; j < DCP_LANES; j++) {
            a[key][j] += log_i[key][j];
            most[j] = a[key][j] > most[j] ? a[key][j] : most[j];
        }
    for (size_t key = 0; key < N; key++)
        for (size_t j = 0; j < DCP_LANES; j++) {
            a[key][j] = exp_(a[key][j] - most[j]);
            sum[j] += a[key][j];
        }
    for (size_t j = 0; j < DCP_LANES; j++) {
        log_sum[j] = most[j] + logf(sum[j]);
        sum[j] = 1 / sum[j];
    }
    for (size_t key = 0; key < N; key++)
        for (size_t j = 0; j < DCP_LANES; j++)
            a[key][j] *= sum[j];
}

KERNEL(extern, softmax_down_backward, (lanes *a, lanes *da, const lanes *log_i, const float *log_sum, const float *dot,
                                       size_t N), (a, da, log_i, log_sum, dot, N))
{
    for (size_t key = 0; key < N; key++)
        for (size_t j = 0; j < DCP_LANES; j++) {
            a[key][j] = exp_(a[key][j] + log_i[key][j] - log_sum[j]);
            da[key][j] = a[key][j] * (da[key][j] - dot[j]);
        }
}
