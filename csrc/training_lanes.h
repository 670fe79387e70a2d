/* training_lanes.h - arrays with a query in each lane: what attention in training is made of. */

#include "common.h"

/* The lanes that load_rows fills. */
INLINE size_t group_lanes(size_t D)
{
    return D + (D + DCP_LANES - 1) / DCP_LANES * DCP_LANES;
}

/* transposed [D][n] = x [n][D], whose rows are `stride` apart. */
void transpose(float *transposed, const float *x, size_t stride, size_t n, size_t D);

/* rows [N][D] = the first D numbers of the live rows of x, which are `stride` apart. */
void gather_rows(float *rows, const float *x, size_t stride, const uint32_t *live, size_t N, size_t D);

/* columns [D][N] = the live columns of transposed [D][T]. */
void gather_columns(float *columns, const float *transposed, size_t T, const uint32_t *live, size_t N, size_t D);

/* n rows of D numbers times `factor`: transposed, [D][32], then in panels of 32 columns, [D / 32][32][32], padded with
 * 0. */
void load_rows(lanes *transposed, const float *x, size_t stride, float factor, size_t n, size_t D);

/* y[r] = x[r, 0..n-1] panel, for any number of rows. */
void multiply_rows(lanes *y, const float *x, size_t stride, const lanes *panel, size_t n, size_t rows);

/* dx[live key] += p[key] panels [D / 32][32][32], over the 32 queries. */
void add_product(float *dx, size_t stride, const lanes *p, const lanes *panels, const uint32_t *live, size_t N,
                 size_t D);

/* a = softmax(a + log I) over the keys; log_sum = the logarithm of the sum of exp(a + log I). */
void softmax_down(lanes *a, const lanes *log_i, float *log_sum, size_t N);

/* a becomes p = exp(a + log I - log_sum), da becomes p (da - dot). */
void softmax_down_backward(lanes *a, lanes *da, const lanes *log_i, const float *log_sum, const float *dot, size_t N);
