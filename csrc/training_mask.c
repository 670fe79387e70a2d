/* training_mask.c - what is dropped, and the gradient of that: the twin of log_mask in dcp_ref/interaction.py. */

#include "common.h"
#include "training.h"

/* The natural logarithm of a normal x > 0, to 2 units in the last place. x = m 2^e with m from sqrt(1/2) to sqrt(2);
 * with f = m - 1, log m = f - f^2 / 2 + f^3 times a polynomial whose largest error is as small as it can be. */
INLINE float log_(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const int32_t e = (int32_t)(bits - 0x3f3504f3u) >> 23;
    bits -= (uint32_t)e << 23;
    float m;
    memcpy(&m, &bits, sizeof m);
    const float f = m - 1, n = (float)e;
    const float tail = f * f * (f * (0x1.555552p-2f + f * (-0x1.0000c8p-2f + f * (0x1.99a14cp-3f +
                       f * (-0x1.54d54ep-3f + f * (0x1.22dc4cp-3f + f * (-0x1.09abe4p-3f +
                       f * (0x1.04591ap-3f + f * -0x1.4bd7p-4f))))))) - 0.5f);
    return n * 0x1.62e4p-1f + (f + (tail + n * 0x1.7f7d1cp-20f));
}

/* log(1 + y) for y > -1. The last term corrects, to first order, the rounding of 1 + y. */
INLINE float log1p_(float y)
{
    const float u = 1 + y;
    return log_(u) + (y - (u - 1)) / u;
}

/* e^x - 1 for x <= 0. The factor x / log e corrects the rounding of e. */
INLINE float expm1_(float x)
{
    const float e = exp_(x), less_one = (e - 1) * (x / log_(e));
    return e == 1 ? x : e > 0 ? less_one : -1;
}

/* One Newton step for x = log(p / (1 - p)), if n < 1; p is the smaller of keep and 1 - keep. */
INLINE float step_odds(float x, float c, float n)
{
    const float e = exp_(x), p = e / (1 + e), power = c * exp_(n * log1p_(e));
    const float ratio = power < 0x1.fffffep-1f ? power : 0x1.fffffep-1f; /* below 1: its log1p(-ratio) is a number */
    return x - (x - log1p_(-ratio) / n) / (1 + p * ratio / (1 - ratio));
}

/* One Newton step for p itself, if n >= 1. The result is above 0, so that log p is finite. */
INLINE float step_power(float p, float c, float n)
{
    const float p_n = exp_(n * log_(p)), base = c + p_n, log_q = log_(base) / n;
    const float next = p - (p + expm1_(log_q)) / (1 + p_n * exp_(log_q) / (base * p));
    return next > 0x1p-100f ? next : 0x1p-100f;
}

/* log_p and log_q: the logarithms of p, the smaller of keep and 1 - keep, and of q = 1 - p. Lanes with n |s| >= 1 get
 * numbers without a meaning. Solves as sigmoid.py does, for the same two unknowns, but in float32, as exact as s is. */
INLINE void solve(lanes log_p, lanes log_q, const lanes s, const float n)
{
    const float twice = exp_(n * 0x1.62e43p-1f) - 1;
    lanes c, x;
    for (size_t j = 0; j < DCP_LANES; j++)
        c[j] = n * fabsf(s[j]);
    if (n == 0)
        for (size_t j = 0; j < DCP_LANES; j++)
            x[j] = -fabsf(s[j]);
    else if (n < 1) {
        for (size_t j = 0; j < DCP_LANES; j++)
            x[j] = log1p_(-c[j] * (1 + twice) / (1 + twice * c[j])) / n;
        for (int step = 0; step < 4; step++)
            for (size_t j = 0; j < DCP_LANES; j++)
                x[j] = step_odds(x[j], c[j], n);
    } else {
        for (size_t j = 0; j < DCP_LANES; j++) {
            c[j] = c[j] > 0x1p-100f ? c[j] : 0x1p-100f;
            const float start = -expm1_(log_(c[j]) / n);
            x[j] = start < 0.5f ? start : 0.5f;
        }
        for (int step = 0; step < 4; step++)
            for (size_t j = 0; j < DCP_LANES; j++)
                x[j] = step_power(x[j], c[j], n);
    }
    for (size_t j = 0; j < DCP_LANES; j++)
        if (n < 1) { /* x is log(p / q) */
            log_q[j] = -log1p_(exp_(x[j]));
            log_p[j] = x[j] + log_q[j];
        } else { /* x is p */
            log_q[j] = log1p_(-x[j]);
            log_p[j] = log_(x[j]);
        }
}

/* log keep and its derivative by s, with alpha = n + 1, in lanes with n |s| < 1. */
INLINE void gate(lanes log_keep, lanes slope, const lanes s, const float n)
{
    lanes log_p, log_q;
    solve(log_p, log_q, s, n);
    for (size_t j = 0; j < DCP_LANES; j++) {
        const float log_k = s[j] > 0 ? log_q[j] : log_p[j], log_other = s[j] > 0 ? log_p[j] : log_q[j];
        log_keep[j] = log_k + (s[j] - s[j]); /* NaN stays NaN */
        /* d log keep / ds = 1 / (keep^(alpha - 1) + keep (1 - keep)^(alpha - 2)) */
        slope[j] = 1 / (exp_(n * log_k) + exp_(log_k + (n - 1) * log_other));
    }
}

/* dcp_log_mask for up to 32 columns, from `first`, down the queries. Where all gates of a row are saturated, or all its
 * keys gone, no equation is solved. */
KERNEL(static, log_mask_columns, (float *log_i, float *slope, const float *s, size_t T, size_t first, float n,
                                  size_t delay), (log_i, slope, s, T, first, n, delay))
{
    const size_t width = T - first < DCP_LANES ? T - first : DCP_LANES;
    lanes sum = {0};
    for (size_t i = 0; i < T; i++) {
        lanes score, log_keep, step;
        int inside = 0;
        for (size_t j = 0; j < DCP_LANES; j++)
            score[j] = j < width && i > first + j + delay ? s[i * T + first + j] : INFINITY; /* keeps */
        for (size_t j = 0; j < DCP_LANES; j++)
            inside |= !(n * fabsf(score[j]) >= 1) & (sum[j] != -INFINITY);
        if (inside)
            gate(log_keep, step, score, n);
        for (size_t j = 0; j < width; j++) {
            const int saturated = !inside | (n * fabsf(score[j]) >= 1) | (fabsf(score[j]) == INFINITY); /* n may be 0 */
            const float sum_now = sum[j] + (saturated ? (score[j] > 0 ? 0 : -INFINITY) : log_keep[j]);
            sum[j] = sum[j] == -INFINITY ? sum[j] : sum_now; /* a later NaN does not bring back what is gone */
            log_i[i * T + first + j] = sum[j];
            slope[i * T + first + j] = (saturated | (score[j] != score[j])) ? 0 : step[j];
        }
    }
}

/* dcp_log_mask_backward for up to 32 columns, from `first`, up the queries. */
KERNEL(static, log_mask_columns_backward, (float *ds, const float *dlog_i, const float *slope, size_t T, size_t first),
       (ds, dlog_i, slope, T, first))
{
    const size_t width = T - first < DCP_LANES ? T - first : DCP_LANES;
    lanes sum = {0};
    for (size_t done = 0; done < T; done++) {
        const size_t at = (T - 1 - done) * T + first;
        for (size_t j = 0; j < width; j++) {
            sum[j] += dlog_i[at + j];
            ds[at + j] = sum[j] * slope[at + j];
        }
    }
}

void dcp_log_mask(float *log_i, float *slope, const float *s, size_t T, float n, size_t delay, size_t threads)
{
    threads = threads_for(16 * T * T, threads);
#pragma omp parallel for num_threads((int)threads) schedule(static, 1)
    for (size_t first = 0; first < T; first += DCP_LANES)
        log_mask_columns(log_i, slope, s, T, first, n, delay);
}

void dcp_log_mask_backward(float *ds, const float *dlog_i, const float *slope, size_t T, size_t threads)
{
    threads = threads_for(4 * T * T, threads);
#pragma omp parallel for num_threads((int)threads) schedule(static, 1)
    for (size_t first = 0; first < T; first += DCP_LANES)
        log_mask_columns_backward(ds, dlog_i, slope, T, first);
}
