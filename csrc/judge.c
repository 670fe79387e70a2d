/* judge.c - which tokens each row drops, and the slot of its own token. */

#include "step.h"

/* The position of the token in the lowest of these slots. */
static int32_t position_in(const span *s, size_t p, uint32_t bits)
{
    return dcp_positions(s->cache, s->slots->page[p])[__builtin_ctz(bits)];
}

/* Clears these bits of page p in the row's bitmaps and reports their tokens, positions ascending within the row. */
static void drop(span *s, uint32_t *live, size_t p, uint32_t bits, size_t row)
{
    live[p] &= ~bits;
    for (; bits; bits &= bits - 1) {
        const int32_t new[2] = {(int32_t)row, position_in(s, p, bits)};
        int32_t *pair = s->dropped + 2 * s->n_dropped++;
        for (; pair > s->dropped && pair[-2] == new[0] && pair[-1] > new[1]; pair -= 2)
            memcpy(pair, pair - 2, sizeof new);
        memcpy(pair, new, sizeof new);
    }
}

/* Drops what the layer before dropped at this row, where this layer still has it. */
static void drop_inherited(span *s, uint32_t *live, size_t row)
{
    for (; s->n_inherited < s->input->pairs; s->n_inherited++) {
        const int32_t *pair = s->input->inherited + 2 * s->n_inherited;
        if (pair[0] > (int32_t)row)
            return;
        for (size_t p = 0; p < s->slots->pages && pair[0] == (int32_t)row; p++)
            for (uint32_t bits = live[p]; bits; bits &= bits - 1)
                if (position_in(s, p, bits) == pair[1])
                    drop(s, live, p, bits & -bits, row);
    }
}

/* Drops the live tokens but those with a score above the threshold, so that a tie and a NaN drop, and those that came no
 * more than `delay` positions before i. The scores are row r of products * scale + beta. */
static void drop_scored(span *s, uint32_t *live, dcp_tile *products, size_t r, size_t i, size_t row)
{
    const dcp_policy *policy = &s->cache->policy;
    const float scale = 1 / sqrtf((float)s->cache->shape.rank), beta = s->input->beta;
    for (size_t p = 0; p < s->slots->pages; p++) {
        uint32_t keep = 0;
        for (size_t j = 0; j < DCP_LANES; j++)
            keep |= (uint32_t)(products[p][r][j] * scale + beta > policy->threshold) << j;
        for (uint32_t bits = live[p] & ~keep; bits; bits &= bits - 1)
            keep |= i - (size_t)position_in(s, p, bits) <= policy->delay ? bits & -bits : 0;
        drop(s, live, p, live[p] & ~keep, row);
    }
}

/* The live slots of page p whose tokens are beyond the window of position i, and not safe by their own position. */
static uint32_t unsafe(const span *s, size_t p, const uint32_t *live, size_t i)
{
    const dcp_policy *policy = &s->cache->policy;
    uint32_t result = 0;
    for (uint32_t bits = live[p]; bits; bits &= bits - 1) {
        const size_t j = (size_t)position_in(s, p, bits);
        if (i - j >= policy->window && j >= policy->first && (policy->stride == 0 || j % policy->stride != 0))
            result |= bits & -bits;
    }
    return result;
}

/* What a token got of attention so far, all heads together. */
static float attention_got(const span *s, size_t p, uint32_t bits)
{
    float total = 0;
    for (size_t h = 0; h < s->cache->shape.heads; h++)
        total += lanes(s, p, DCP_SUMS, h)[__builtin_ctz(bits)];
    return total;
}

/* Drops the unsafe token with the least attention, the earliest of equals, where there are more than `heavy`. Returns
 * whether it did. */
static int drop_lightest(span *s, uint32_t *live, size_t i, size_t row)
{
    size_t candidates = 0, page = 0;
    uint32_t bit = 0;
    float least = 0;
    for (size_t p = 0; p < s->slots->pages; p++)
        for (uint32_t bits = unsafe(s, p, live, i); bits; bits &= bits - 1) {
            const float total = attention_got(s, p, bits);
            if (candidates == 0 || total < least ||
                (total == least && position_in(s, p, bits) < position_in(s, page, bit))) {
                least = total;
                page = p;
                bit = bits & -bits;
            }
            candidates++;
        }
    if (candidates <= s->cache->policy.heavy)
        return 0;
    drop(s, live, page, bit, row);
    return 1;
}

/* The tokens that no rule by position keeps, but for the heavy hitters among them. */
static void drop_unsafe(span *s, uint32_t *live, size_t i, size_t row)
{
    if (s->cache->policy.by_attention) {
        while (drop_lightest(s, live, i, row))
            continue;
        return;
    }
    for (size_t p = 0; p < s->slots->pages; p++)
        drop(s, live, p, unsafe(s, p, live, i), row);
}

/* Gives row i's token a slot; what the judging of rows reads of it is written now, keys and values later. */
static void insert(const span *s, size_t i)
{
    const size_t slot = s->slot_of[i] = dcp_slot_take(s->slots, &s->cache->pool);
    const size_t p = slot / s->cache->pool.page_slots, lane = slot % s->cache->pool.page_slots;
    dcp_positions(s->cache, s->slots->page[p])[lane] = (int32_t)s->slots->seen++;
    for (size_t c = 0; c < s->cache->shape.rank; c++)
        lanes(s, p, DCP_K_INT, c)[lane] = s->input->k_int[(s->first + i) * s->input->int_stride + c];
    for (size_t h = 0; h < s->cache->shape.heads && s->cache->policy.by_attention; h++)
        lanes(s, p, DCP_SUMS, h)[lane] = 0;
}

/* One row: drop first, then take a slot, perhaps one just freed. Several rows: take all their slots first, and mark each
 * live from its own row on; slots freed in between are not reused. */
void judge(span *s, dcp_tile *scores)
{
    const dcp_cache *cache = s->cache;
    const size_t list = cache->list_pages, seen = s->slots->seen, stride = s->input->int_stride;
    uint32_t *live = s->live;
    memset(live, 0, list * sizeof *live);
    memcpy(live, s->slots->bitmap, s->slots->pages * sizeof *live);
    for (size_t i = 0; i < s->rows && s->rows > 1; i++)
        insert(s, i);
    for (size_t i = 0, tile = 0, end = 0; i < s->rows; i++, live += list) {
        const size_t row = s->first + i;
        if (cache->shape.rank > 0 && i == end) {
            tile = i;
            end += tile_rows(s->rows - i);
            for (size_t p = 0; p < s->slots->pages; p++)
                dcp_multiply(scores[p], s->input->q_int + row * stride, stride, lanes(s, p, DCP_K_INT, 0),
                             cache->shape.rank, DCP_FLOAT32, end - tile);
        }
        if (i > 0)
            memcpy(live, live - list, list * sizeof *live);
        drop_inherited(s, live, row);
        if (cache->shape.rank > 0)
            drop_scored(s, live, scores, i - tile, seen + i, row);
        if (cache->policy.window > 0)
            drop_unsafe(s, live, seen + i, row);
        if (s->rows == 1) {
            dcp_slots_keep(s->slots, live);
            insert(s, i);
        }
        live[s->slot_of[i] / cache->pool.page_slots] |= UINT32_C(1) << s->slot_of[i] % cache->pool.page_slots;
    }
}
