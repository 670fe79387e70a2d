/* training_elementwise.c - element by element: the activation and its slope, and the exponentials of cross-entropy, twins of
 * dcp_ref/layers.py. */

#include "common.h"
#include "training.h"

/* y = x g with g = 1 / (1 + e^(-2 a x (1 + b x^2))); slope, its derivative, = g + x g (1 - g) 2 a (1 + 3 b x^2). */
KERNEL(static, gelu_new_slope, (float *y, float *slope, const float *x, size_t n), (y, slope, x, n))
{
    const float twice_a = 0x1.988454p+0f, b = 0.044715f;
    for (size_t i = 0; i < n; i++) {
        const float near = x[i] < -20 ? -20 : x[i] > 20 ? 20 : x[i], square = near * near; /* g is 0 or 1 beyond */
        const float g = 1 / (1 + exp_(-twice_a * near * (1 + b * square)));
        y[i] = (x[i] > 20 ? x[i] : near) * g;
        slope[i] = g + near * g * (1 - g) * twice_a * (1 + 3 * b * square);
    }
}

void dcp_gelu_new_saved(float *y, float *slope, const float *x, size_t n, size_t threads)
{
    const size_t share = 1 << 12, shares = (n + share - 1) / share; /* numbers that a thread takes at once */
    threads = threads_for(32 * n, threads);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (size_t i = 0; i < shares; i++) {
        const size_t at = i * share;
        gelu_new_slope(y + at, slope + at, x + at, n - at < share ? n - at : share);
    }
}

/* The largest of n numbers. */
INLINE float largest_of(const float *x, size_t n)
{
    lanes most;
    size_t i = 0;
    for (size_t j = 0; j < DCP_LANES; j++)
        most[j] = -INFINITY;
    for (; i + DCP_LANES <= n; i += DCP_LANES)
        for (size_t j = 0; j < DCP_LANES; j++)
            most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
    for (size_t j = 0; i + j < n; j++)
        most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
    for (size_t j = 1; j < DCP_LANES; j++)
        most[0] = most[j] > most[0] ? most[j] : most[0];
    return most[0];
}

/* dcp_exp_rows for one row. */
KERNEL(static, exp_row, (float *e, float *largest, float *whole, const float *x, size_t n), (e, largest, whole, x, n))
{
    lanes sum = {0};
    size_t i = 0;
    const float max = largest_of(x, n);
    for (; i + DCP_LANES <= n; i += DCP_LANES)
        for (size_t j = 0; j < DCP_LANES; j++) {
            e[i + j] = exp_(x[i + j] - max);
            sum[j] += e[i + j];
        }
    for (size_t j = 0; i + j < n; j++) {
        e[i + j] = exp_(x[i + j] - max);
        sum[j] += e[i + j];
    }
    for (size_t j = 1; j < DCP_LANES; j++)
        sum[0] += sum[j];
    *largest = max;
    *whole = sum[0];
}

void dcp_exp_rows(float *e, float *largest, float *sum, const float *x, size_t rows, size_t n, size_t threads)
{
    threads = threads_for(16 * rows * n, threads);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (size_t r = 0; r < rows; r++)
        exp_row(e + r * n, largest + r, sum + r, x + r * n, n);
}
