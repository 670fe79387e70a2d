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

/* ---- store: one head's keys and values of the new tokens, in the bits that the cache keeps ---- */

/* The half float nearest to x, even among two; beyond the largest, the largest. */
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

/* What the int8 numbers of a head are multiples of: max |x| / 127; NaN where there is a NaN. */
static float int8_scale(const float *x, size_t n, float *inverse)
{
    float max = 0;
    for (size_t d = 0; d < n; d++)
        max = fabsf(x[d]) > max || x[d] != x[d] ? fabsf(x[d]) : max;
    *inverse = max < 0x1p-120f ? 0 : 127 / max; /* so small that 127 / max could overflow */
    return max / 127;
}

/* Number j of row k of a panel = x; for int8, times `inverse`. */
INLINE void put(unsigned char *panel, size_t k, size_t j, float x, int kv, float inverse)
{
    unsigned char *at = panel + offset(k, j, kv);
    const float n = kv == DCP_INT8 ? rintf(x * inverse) : 0;
    if (kv == DCP_FLOAT32)
        memcpy(at, &x, sizeof x);
    else if (kv == DCP_FLOAT16)
        memcpy(at, &(uint16_t){half(x)}, sizeof(uint16_t));
    else
        *at = (unsigned char)(int8_t)(n != n ? 0 : n > 127 ? 127 : n < -127 ? -127 : n);
}

INLINE void store(const span *s, size_t i, size_t h, int kv)
{
    const dcp_cache *cache = s->cache;
    const size_t D = cache->shape.head_dim, n = cache->pool.page_slots, p = s->slot_of[i] / n, slot = s->slot_of[i] % n;
    const float *k = s->input->k + (s->first + i) * s->input->stride + h * D;
    const float *v = s->input->v + (s->first + i) * s->input->stride + h * D;
    unsigned char *keys = s->slots->page[p].area[DCP_KEYS] + h * panel_bytes(D, kv);
    unsigned char *values = s->slots->page[p].area[DCP_VALUES] + h * cache->v_panels * panel_bytes(n, kv);
    for (size_t at = 0; at < panel_bytes(D, kv) && s->rows == 1; at += 64)
        __builtin_prefetch(keys + at, 1, 2); /* in order, before single numbers far apart in it are written */
    float k_inverse = 0, v_inverse = 0;
    if (kv == DCP_INT8) {
        lanes(s, p, DCP_K_SCALE, h)[slot] = int8_scale(k, D, &k_inverse);
        lanes(s, p, DCP_V_SCALE, h)[slot] = int8_scale(v, D, &v_inverse);
    }
    for (size_t d = 0; d < D; d++)
        put(keys, d, slot, k[d], kv, k_inverse);
    for (size_t d = 0; d < D; d++)
        put(values + d / DCP_LANES * panel_bytes(n, kv), slot, d % DCP_LANES, v[d], kv, v_inverse);
}

/* ---- attend ---- */

/* w[p][r] = softmax(scale * q k) over the live slots of row i + r, 0 elsewhere. Lane by lane: then the compiler does many
 * at once. Adds weights to the sums of attention; takes in scales of int8 keys and values. */
CLONES void softmax(dcp_tile *w, size_t r, const span *s, size_t i, size_t h)
{
    const uint32_t *live = s->live + (i + r) * s->cache->list_pages;
    const size_t pages = s->slots->pages;
    const int int8 = s->cache->shape.kv == DCP_INT8, by_attention = s->cache->policy.by_attention;
    const float scale = s->input->scale;
    float max[DCP_LANES], sum[DCP_LANES] = {0};
    for (size_t j = 0; j < DCP_LANES; j++)
        max[j] = -INFINITY;
    for (size_t p = 0; p < pages; p++) {
        const float *k_scale = lanes(s, p, DCP_K_SCALE, h);
        for (size_t j = 0; j < DCP_LANES; j++) {
            const float a = live[p] >> j & 1 ? scale * w[p][r][j] * (int8 ? k_scale[j] : 1) : -INFINITY;
            w[p][r][j] = a;
            max[j] = a > max[j] ? a : max[j];
        }
    }
    for (size_t n = DCP_LANES / 2; n > 0; n /= 2)
        for (size_t j = 0; j < n; j++)
            max[j] = max[j + n] > max[j] ? max[j + n] : max[j];
    for (size_t p = 0; p < pages; p++)
        for (size_t j = 0; j < DCP_LANES; j++)
            sum[j] += w[p][r][j] = exp_(w[p][r][j] - max[0]);
    for (size_t n = DCP_LANES / 2; n > 0; n /= 2)
        for (size_t j = 0; j < n; j++)
            sum[j] += sum[j + n];
    const float inverse = 1 / sum[0];
    for (size_t p = 0; p < pages; p++) {
        float *restrict sums = lanes(s, p, DCP_SUMS, h), *restrict v_scale = lanes(s, p, DCP_V_SCALE, h);
        for (size_t j = 0; j < DCP_LANES; j++)
            w[p][r][j] *= inverse;
        for (size_t j = 0; j < DCP_LANES && by_attention; j++)
            sums[j] += w[p][r][j];
        for (size_t j = 0; j < DCP_LANES && int8; j++)
            w[p][r][j] *= live[p] >> j & 1 ? v_scale[j] : 0;
    }
}

/* Attends for rows i .. i + rows - 1 of the span. Pages are read from their start on, as memory likes it: of all these
 * heads the keys; then, page after page again, the values. */
static void attend_rows(float *out, const head_task *task, size_t i, size_t rows)
{
    const span *s = task->span;
    const dcp_cache *cache = s->cache;
    const size_t D = cache->shape.head_dim, list = cache->list_pages, panels = cache->v_panels, stride = s->input->stride;
    const size_t k_bytes = panel_bytes(D, cache->shape.kv), v_bytes = panel_bytes(cache->pool.page_slots, cache->shape.kv);
    const float *q = s->input->q + (s->first + i) * stride;
    for (size_t p = 0; p < s->slots->pages; p++)
        for (size_t h = any_live(s, i, p, rows) ? task->first : task->end; h < task->end; h++)
            dcp_multiply(task->w[h * list + p], q + h * D, stride,
                         s->slots->page[p].area[DCP_KEYS] + h * k_bytes, D, cache->shape.kv, rows);
    for (size_t h = task->first; h < task->end; h++)
        for (size_t r = 0; r < rows; r++)
            softmax(task->w + h * list, r, s, i, h);
    for (size_t c = task->first * panels; c < task->end * panels; c++)
        memset(task->sum[c], 0, rows * sizeof *task->sum[c]);
    for (size_t p = 0; p < s->slots->pages; p++) {
        const uint32_t live = any_live(s, i, p, rows);
        for (size_t c = task->first * panels; c < task->end * panels; c++)
            dcp_add_live(task->sum[c], task->w[c / panels * list + p],
                         s->slots->page[p].area[DCP_VALUES] + c * v_bytes, live, cache->shape.kv, rows);
    }
    for (size_t c = task->first * panels; c < task->end * panels; c++)
        for (size_t r = 0, at = c % panels * DCP_LANES; r < rows; r++)
            memcpy(out + (s->first + i + r) * dcp_stride(cache->channels) + c / panels * D + at, task->sum[c][r],
                   (D - at < DCP_LANES ? D - at : DCP_LANES) * sizeof(float));
}

void attend(float *out, const head_task *task)
{
    const span *s = task->span;
    for (size_t i = 0; i < s->rows; i++)
        for (size_t h = task->first; h < task->end; h++) {
            if (s->cache->shape.kv == DCP_FLOAT32) /* a constant, for which the compiler makes loops of its own */
                store(s, i, h, DCP_FLOAT32);
            else
                store(s, i, h, s->cache->shape.kv);
        }
    for (size_t i = 0; i < s->rows; i += tile_rows(s->rows - i))
        attend_rows(out, task, i, tile_rows(s->rows - i));
}
