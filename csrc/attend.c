/* attend.c - keys and values into their slots, then attention over the live ones. */

#include "step.h"

/* The slots of page p that are live for any of the rows i .. i + rows - 1. */
static uint32_t any_live(const span *s, size_t i, size_t p, size_t rows)
{
    uint32_t bits = 0;
    for (size_t r = i; r < i + rows; r++)
        bits |= s->live[r * s->cache->list_pages + p];
    return bits;
}

/* ---- store: one head's key and value of a new token, as the cache stores them ---- */

/* The bits of the half float nearest to x, even among two; the largest half float where x is beyond it. */
static uint16_t half(float x)
{
    const float size = fabsf(x) < 65504 ? fabsf(x) : 65504, shifted = size * 0x1p24f + 0x1p23f;
    uint32_t bits, sign, small;
    memcpy(&bits, &size, sizeof bits);
    memcpy(&sign, &x, sizeof sign);
    memcpy(&small, &shifted, sizeof small); /* below 2^-14 halves are multiples of 2^-24: counted in the low bits */
    bits = ((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112u << 10);
    return (uint16_t)((size < 0x1p-14f ? small - 0x4b000000u : bits) | (sign >> 16 & 0x8000u));
}

/* The number that a head's int8 numbers are multiples of: max |x| / 127, or NaN if there is a NaN. *inverse = 127 / max
 * |x|, or 0 where that could overflow. */
static float int8_scale(const float *x, size_t n, float *inverse)
{
    float max = 0;
    for (size_t d = 0; d < n; d++)
        max = fabsf(x[d]) > max || x[d] != x[d] ? fabsf(x[d]) : max;
    *inverse = max < 0x1p-120f ? 0 : 127 / max;
    return max / 127;
}

/* The integer nearest to x, even among two, from -127 to 127; 0 for NaN. */
static int8_t nearest_int8(float x)
{
    const float n = rintf(x);
    return (int8_t)(n != n ? 0 : n > 127 ? 127 : n < -127 ? -127 : n);
}

/* Number j of row k of a panel = x; for int8, x * inverse. */
INLINE void put(unsigned char *panel, size_t k, size_t j, float x, int kv, float inverse)
{
    unsigned char *at = panel + offset(k, j, kv);
    if (kv == DCP_FLOAT32)
        memcpy(at, &x, sizeof x);
    else if (kv == DCP_FLOAT16)
        memcpy(at, &(uint16_t){half(x)}, sizeof(uint16_t));
    else
        *at = (unsigned char)nearest_int8(x * inverse);
}

/* Stores head h's key and value of row i. */
INLINE void store(const span *s, size_t i, size_t h, int kv)
{
    const dcp_cache *cache = s->cache;
    const size_t D = cache->shape.head_dim, n = cache->pool.page_slots, p = s->slot_of[i] / n, slot = s->slot_of[i] % n;
    const float *k = s->input->k + (s->first + i) * s->input->stride + h * D;
    const float *v = s->input->v + (s->first + i) * s->input->stride + h * D;
    unsigned char *keys = s->slots->page[p].area[DCP_KEYS] + h * panel_bytes(D, kv);
    unsigned char *values = s->slots->page[p].area[DCP_VALUES] + h * cache->v_panels * panel_bytes(n, kv);
    if (s->rows == 1)
        for (size_t at = 0; at < panel_bytes(D, kv); at += 64)
            __builtin_prefetch(keys + at, 1, 2); /* in order, before single numbers far apart in it are written */
    float k_inverse = 0, v_inverse = 0;
    if (kv == DCP_INT8) {
        field_row(s, p, DCP_K_SCALE, h)[slot] = int8_scale(k, D, &k_inverse);
        field_row(s, p, DCP_V_SCALE, h)[slot] = int8_scale(v, D, &v_inverse);
    }
    for (size_t d = 0; d < D; d++)
        put(keys, d, slot, k[d], kv, k_inverse);
    for (size_t d = 0; d < D; d++)
        put(values + d / DCP_LANES * panel_bytes(n, kv), slot, d % DCP_LANES, v[d], kv, v_inverse);
}

/* Stores the keys and values of the task's heads, for all rows of its span. */
static void store_rows(const head_task *task)
{
    const span *s = task->span;
    for (size_t i = 0; i < s->rows; i++)
        for (size_t h = task->first; h < task->end; h++) {
            if (s->cache->shape.kv == DCP_FLOAT32) /* a constant, for which the compiler makes loops of its own */
                store(s, i, h, DCP_FLOAT32);
            else
                store(s, i, h, s->cache->shape.kv);
        }
}

/* ---- attend: q k, softmax, times v; all in passes over the live slots, 32 lanes at a time ---- */

/* a = scale * a in the live lanes (times its key's scale, for int8), -infinity in the others; most = the larger of it
 * and most. */
INLINE void scale_scores(lanes a, lanes most, uint32_t live, float scale, const float *k_scale, int int8)
{
    for (size_t j = 0; j < DCP_LANES; j++) {
        a[j] = live >> j & 1 ? scale * a[j] * (int8 ? k_scale[j] : 1) : -INFINITY;
        most[j] = a[j] > most[j] ? a[j] : most[j];
    }
}

/* The largest of 32 numbers, by halves; x is overwritten. */
INLINE float largest(lanes x)
{
    for (size_t n = DCP_LANES / 2; n > 0; n /= 2)
        for (size_t j = 0; j < n; j++)
            x[j] = x[j + n] > x[j] ? x[j + n] : x[j];
    return x[0];
}

/* w[p][r] = softmax(scale * q k) over the live slots of row i + r, 0 in the others, from w[p][r] = q k. Adds the
 * weights to the sums of attention; multiplies them by the scales of int8 values. Lane by lane, so that it is
 * vectorised. */
KERNEL(static, softmax, (tile *w, size_t r, const span *s, size_t i, size_t h), (w, r, s, i, h))
{
    const uint32_t *live = s->live + (i + r) * s->cache->list_pages;
    const size_t pages = s->slots->pages;
    const int int8 = s->cache->shape.kv == DCP_INT8, by_attention = s->cache->policy.by_attention;
    lanes most, sum = {0};
    for (size_t j = 0; j < DCP_LANES; j++)
        most[j] = -INFINITY;
    for (size_t p = 0; p < pages; p++)
        scale_scores(w[p][r], most, live[p], s->input->scale, field_row(s, p, DCP_K_SCALE, h), int8);
    const float max = largest(most);
    for (size_t p = 0; p < pages; p++)
        for (size_t j = 0; j < DCP_LANES; j++) {
            w[p][r][j] = exp_(w[p][r][j] - max);
            sum[j] += w[p][r][j];
        }
    const float inverse = 1 / total(sum);
    for (size_t p = 0; p < pages; p++) {
        float *restrict sums = field_row(s, p, DCP_SUMS, h), *restrict v_scale = field_row(s, p, DCP_V_SCALE, h);
        for (size_t j = 0; j < DCP_LANES; j++)
            w[p][r][j] *= inverse;
        if (by_attention)
            for (size_t j = 0; j < DCP_LANES; j++)
                sums[j] += w[p][r][j];
        if (int8)
            for (size_t j = 0; j < DCP_LANES; j++)
                w[p][r][j] *= live[p] >> j & 1 ? v_scale[j] : 0;
    }
}

/* The task's tiles of weights = q k, for rows i .. i + rows - 1. Page by page, all heads of a page together: so keys
 * are read in the order in which they stand in memory. */
static void score_keys(const head_task *task, size_t i, size_t rows)
{
    const span *s = task->span;
    const dcp_cache *cache = s->cache;
    const size_t D = cache->shape.head_dim, stride = s->input->stride, bytes = panel_bytes(D, cache->shape.kv);
    const float *q = s->input->q + (s->first + i) * stride;
    for (size_t p = 0; p < s->slots->pages; p++) {
        if (any_live(s, i, p, rows) == 0)
            continue;
        for (size_t h = task->first; h < task->end; h++)
            multiply(task->w[h * cache->list_pages + p], q + h * D, stride,
                          s->slots->page[p].area[DCP_KEYS] + h * bytes, D, cache->shape.kv, rows);
    }
}

/* The task's tiles of sums = weights times values, for rows i .. i + rows - 1, page by page as well. */
static void add_values(const head_task *task, size_t i, size_t rows)
{
    const span *s = task->span;
    const dcp_cache *cache = s->cache;
    const size_t panels = cache->v_panels, bytes = panel_bytes(cache->pool.page_slots, cache->shape.kv);
    for (size_t c = task->first * panels; c < task->end * panels; c++)
        memset(task->sum[c], 0, rows * sizeof *task->sum[c]);
    for (size_t p = 0; p < s->slots->pages; p++) {
        const uint32_t live = any_live(s, i, p, rows);
        for (size_t c = task->first * panels; c < task->end * panels; c++)
            add_live(task->sum[c], task->w[c / panels * cache->list_pages + p],
                     s->slots->page[p].area[DCP_VALUES] + c * bytes, live, cache->shape.kv, rows);
    }
}

/* Copies the task's sums to their channels of rows i .. i + rows - 1 of out. */
static void copy_out(float *out, const head_task *task, size_t i, size_t rows)
{
    const dcp_cache *cache = task->span->cache;
    const size_t D = cache->shape.head_dim, panels = cache->v_panels, stride = dcp_stride(cache->channels);
    for (size_t c = task->first * panels; c < task->end * panels; c++) {
        const size_t at = c % panels * DCP_LANES, width = D - at < DCP_LANES ? D - at : DCP_LANES;
        for (size_t r = 0; r < rows; r++)
            memcpy(out + (task->span->first + i + r) * stride + c / panels * D + at, task->sum[c][r],
                   width * sizeof *out);
    }
}

void attend(float *out, const head_task *task)
{
    const span *s = task->span;
    store_rows(task);
    for (size_t i = 0, rows; i < s->rows; i += rows) {
        rows = tile_rows(s->rows - i);
        score_keys(task, i, rows);
        for (size_t h = task->first; h < task->end; h++)
            for (size_t r = 0; r < rows; r++)
                softmax(task->w + h * s->cache->list_pages, r, s, i, h);
        add_values(task, i, rows);
        copy_out(out, task, i, rows);
    }
}
