/* attention.c - a step of one layer as named passes: score, drop, insert, attend. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "dcp.h"

/* The passes are compiled once per instruction set, and the loader picks; where that is not to be had, once. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
/* What a pass calls must be inlined into each of its clones. */
#define INLINE static inline __attribute__((always_inline))

const char *dcp_simd_level(void)
{
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
    if (__builtin_cpu_supports("x86-64-v4"))
        return "avx512f";
    if (__builtin_cpu_supports("x86-64-v3"))
        return "avx2";
#endif
    return "baseline";
}

/* a . b, in 16 sums side by side: the compiler may not reorder one sum, but it keeps 16 of them in vectors. */
INLINE float dot(const float *restrict a, const float *restrict b, size_t n)
{
    float lane[16] = {0}, sum = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 16; j++)
            lane[j] += a[i + j] * b[i + j];
    for (size_t j = 0; j < 16; j++)
        sum += lane[j];
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* ---- score ---- */

CLONES void dcp_score(float *restrict s, const float *restrict q_int, const dcp_cache *cache, const dcp_slots *slots,
                      float beta)
{
    const size_t r = cache->rank;
    const float scale = 1 / sqrtf((float)r);
    for (size_t p = 0; p < slots->pages; p++)
        for (uint64_t bits = slots->bitmap[p]; bits; bits &= bits - 1) {
            size_t slot = (size_t)__builtin_ctzll(bits);
            const float *k_int = slots->page[p] + cache->k_int_at + slot * r;
            s[p * cache->pool.page_slots + slot] = dot(q_int, k_int, r) * scale + beta;
        }
}

/* ---- drop ---- */

/* How far a step has got in the pairs (row, position) that it reports, and in those that it inherits. */
typedef struct {
    int32_t (*dropped)[2];
    size_t n_dropped, n_inherited;
} drop_log;

/* Frees a live slot and reports its token, positions ascending within the row. */
static void drop(drop_log *drops, const dcp_cache *cache, dcp_slots *slots, size_t p, size_t slot, size_t row)
{
    const int32_t pair[2] = {(int32_t)row, dcp_position(cache, slots->page[p], slot)};
    size_t i = drops->n_dropped++;
    for (; i > 0 && drops->dropped[i - 1][0] == pair[0] && drops->dropped[i - 1][1] > pair[1]; i--)
        memcpy(drops->dropped[i], drops->dropped[i - 1], sizeof pair);
    memcpy(drops->dropped[i], pair, sizeof pair);
    dcp_slot_drop(slots, p * cache->pool.page_slots + slot, cache->pool.page_slots);
}

/* Inherited drop pass: the row's tokens that the layer before dropped, where this layer still has them. */
static void drop_inherited(drop_log *drops, const dcp_cache *cache, dcp_slots *slots, const dcp_block *block, size_t row)
{
    for (; drops->n_inherited < block->pairs; drops->n_inherited++) {
        const int32_t *pair = block->inherited + 2 * drops->n_inherited;
        if (pair[0] > (int32_t)row)
            return;
        for (size_t p = 0; p < slots->pages; p++)
            for (uint64_t bits = slots->bitmap[p]; bits; bits &= bits - 1) {
                size_t slot = (size_t)__builtin_ctzll(bits);
                if (dcp_position(cache, slots->page[p], slot) == pair[1])
                    drop(drops, cache, slots, p, slot, row);
            }
    }
}

/* Learned drop pass: every live token but those with s > 0, so that a tie and a NaN drop. */
static void drop_scored(drop_log *drops, const dcp_cache *cache, dcp_slots *slots, const float *s, size_t row)
{
    for (size_t p = 0; p < slots->pages; p++)
        for (uint64_t bits = slots->bitmap[p]; bits; bits &= bits - 1) {
            size_t slot = (size_t)__builtin_ctzll(bits);
            if (!(s[p * cache->pool.page_slots + slot] > 0))
                drop(drops, cache, slots, p, slot, row);
        }
}

/* ---- attend ---- */

/* weights[h, n] = scale * q_h . k_n,h, where n counts the live slots in order. */
INLINE void attend_scores(float *restrict weights, const float *restrict q, const dcp_cache *cache,
                          const dcp_slots *slots, float scale)
{
    const size_t C = cache->channels, H = cache->heads, D = C / H, N = slots->live;
    size_t n = 0;
    for (size_t p = 0; p < slots->pages; p++)
        for (uint64_t bits = slots->bitmap[p]; bits; bits &= bits - 1, n++) {
            const float *k = slots->page[p] + C * (size_t)__builtin_ctzll(bits);
            for (size_t h = 0; h < H; h++)
                weights[h * N + n] = scale * dot(q + h * D, k + h * D, D);
        }
}

/* weights[n] = exp(weights[n] - max) / sum */
INLINE void attend_softmax(float *weights, size_t N)
{
    float max = -INFINITY, sum = 0;
    for (size_t n = 0; n < N; n++)
        max = weights[n] > max ? weights[n] : max;
    for (size_t n = 0; n < N; n++)
        sum += weights[n] = expf(weights[n] - max);
    for (size_t n = 0; n < N; n++)
        weights[n] /= sum;
}

/* out_h = sum over live slots n of weights[h, n] * v_n,h */
INLINE void attend_values(float *restrict out, const float *restrict weights, const dcp_cache *cache,
                          const dcp_slots *slots)
{
    const size_t C = cache->channels, H = cache->heads, D = C / H, N = slots->live;
    size_t n = 0;
    memset(out, 0, C * sizeof(float));
    for (size_t p = 0; p < slots->pages; p++)
        for (uint64_t bits = slots->bitmap[p]; bits; bits &= bits - 1, n++) {
            const float *v = slots->page[p] + cache->v_at + C * (size_t)__builtin_ctzll(bits);
            for (size_t h = 0; h < H; h++)
                for (size_t d = h * D; d < (h + 1) * D; d++)
                    out[d] += weights[h * N + n] * v[d];
        }
}

CLONES void dcp_attend(float *restrict out, float *restrict weights, const float *restrict q, const dcp_cache *cache,
                       const dcp_slots *slots, float scale)
{
    attend_scores(weights, q, cache, slots, scale);
    for (size_t h = 0; h < cache->heads; h++)
        attend_softmax(weights + h * slots->live, slots->live);
    attend_values(out, weights, cache, slots);
}

/* ---- all of it, row by row ---- */

/* The rows first .. end-1 of the block, which are all those of one sequence. */
static void step_sequence(float *out, drop_log *drops, dcp_cache *cache, dcp_slots *slots, const dcp_block *block,
                          size_t first, size_t end)
{
    const size_t C = cache->channels, r = cache->rank;
    for (size_t row = first; row < end; row++) {
        drop_inherited(drops, cache, slots, block, row);
        if (r > 0) {
            dcp_score(cache->scratch, block->q_int + row * r, cache, slots, block->beta);
            drop_scored(drops, cache, slots, cache->scratch, row);
        }
        dcp_insert(cache, slots, block->k + row * C, block->v + row * C, r > 0 ? block->k_int + row * r : NULL);
        dcp_attend(out + row * C, cache->scratch, block->q + row * C, cache, slots, block->scale);
    }
    dcp_compact(cache, slots);
}

static int check_block(const dcp_cache *cache, const dcp_block *block)
{
    size_t pages = 0;
    if (block->layer >= cache->layers)
        return DCP_EINVAL;
    for (size_t b = 0; b < block->batch; b++) {
        const dcp_slots *slots = &block->sequence[b]->layer[block->layer];
        if (block->start[b] != slots->seen || block->count[b] > cache->positions - slots->seen)
            return DCP_EINVAL;
        pages += dcp_pages_for(slots->live + block->count[b], cache->pool.page_slots) - slots->pages;
    }
    return pages > cache->pool.n_free ? DCP_ENOROOM : DCP_OK;
}

ptrdiff_t dcp_step(float *out, int32_t *dropped, dcp_cache *cache, const dcp_block *block)
{
    int error = check_block(cache, block);
    if (error != DCP_OK)
        return error;
    drop_log drops = {(int32_t(*)[2])dropped, 0, 0};
    size_t row = 0;
    for (size_t b = 0; b < block->batch; row += block->count[b], b++)
        step_sequence(out, &drops, cache, &block->sequence[b]->layer[block->layer], block, row, row + block->count[b]);
    return (ptrdiff_t)drops.n_dropped;
}
