/* layers.c - layer norm, activations, embeddings. */

#include "common.h"

/* The sum of n numbers, or of their squared distances from `mean`: in 32 sums side by side, added up at the end. */
INLINE float sum_of(const float *x, size_t n, float mean, int squares)
{
    lanes sum = {0};
    size_t i = 0;
    for (; i + DCP_LANES <= n; i += DCP_LANES)
        for (size_t j = 0; j < DCP_LANES; j++)
            sum[j] += squares ? (x[i + j] - mean) * (x[i + j] - mean) : x[i + j];
    for (size_t j = 0; i + j < n; j++)
        sum[j] += squares ? (x[i + j] - mean) * (x[i + j] - mean) : x[i + j];
    return total(sum);
}

/* dcp_layer_norm for one row. */
KERNEL(static, layer_norm_row, (float *y, const float *x, const float *gain, const float *bias, float epsilon,
                                size_t n), (y, x, gain, bias, epsilon, n))
{
    const float mean = sum_of(x, n, 0, 0) / (float)n;
    const float rstd = 1 / sqrtf(sum_of(x, n, mean, 1) / (float)n + epsilon);
    for (size_t i = 0; i < n; i++)
        y[i] = (x[i] - mean) * rstd * gain[i] + bias[i];
}

void dcp_layer_norm(float *y, const float *x, const float *gain, const float *bias, float epsilon, size_t rows,
                    size_t n, size_t threads)
{
    threads = threads_for(8 * rows * n, threads);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (size_t r = 0; r < rows; r++)
        layer_norm_row(y + r * dcp_stride(n), x + r * dcp_stride(n), gain, bias, epsilon, n);
}

/* x (1 + tanh(a x (1 + b x^2))) / 2 = x / (1 + e^(-2 a x (1 + b x^2))) */
KERNEL(static, gelu_new, (float *y, const float *x, size_t n), (y, x, n))
{
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] / (1 + exp_(-0x1.988454p+0f * x[i] * (1 + 0.044715f * x[i] * x[i])));
}

/* x (1 + erf(x / sqrt(2))) / 2 */
static void gelu(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] * (1 + erff(x[i] * 0x1.6a09e6p-1f)) / 2;
}

/* The larger of x and 0; NaN stays NaN. */
static void relu(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] < 0 ? 0 : x[i];
}

void dcp_activation(float *y, const float *x, int kind, size_t n, size_t threads)
{
    const size_t share = 1 << 12, shares = (n + share - 1) / share; /* numbers that a thread takes at once */
    threads = threads_for(16 * n, threads);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (size_t i = 0; i < shares; i++) {
        const size_t at = i * share, width = n - at < share ? n - at : share;
        if (kind == DCP_GELU_NEW)
            gelu_new(y + at, x + at, width);
        else if (kind == DCP_GELU)
            gelu(y + at, x + at, width);
        else
            relu(y + at, x + at, width);
    }
}

void dcp_embedding(float *y, const int64_t *ids, const int64_t *positions, const dcp_matrix *wte, const float *wpe,
                   size_t rows, size_t threads)
{
    const size_t n = wte->n_in;
    threads = threads_for(64 * rows * n, threads); /* each number of wte is in a cache line of its own, or nearly */
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (size_t r = 0; r < rows; r++) {
        const size_t id = (size_t)ids[r];
        const char *panel = (const char *)wte->panel + id / DCP_LANES * panel_bytes(n, wte->type);
        for (size_t i = 0; i < n; i++) {
            const float x = lane(panel, i, id % DCP_LANES, wte->type);
            y[r * dcp_stride(n) + i] = (wte->scale ? x * wte->scale[id] : x) + wpe[(size_t)positions[r] * n + i];
        }
    }
}
