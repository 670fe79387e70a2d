/* judge.c - which tokens each row drops, and the slot of its own token. */

#include "step.h"

/* The position of the token in the lowest of these slots. */
static int32_t position_in(const span *s, size_t p, uint32_t bits)
{
    return positions_of(s->cache, s->slots->page[p])[__builtin_ctz(bits)];
}

/* Adds the pair (row, position) to dropped, whose rows ascend, and positions within a row. */
static void report(span *s, int32_t row, int32_t position)
{
    size_t at = s->n_dropped;
    while (at > 0 && s->dropped[2 * at - 2] == row && s->dropped[2 * at - 1] > position) {
        memcpy(s->dropped + 2 * at, s->dropped + 2 * at - 2, 2 * sizeof *s->dropped);
        at--;
    }
    s->dropped[2 * at] = row;
    s->dropped[2 * at + 1] = position;
    s->n_dropped++;
}

/* Those of these slots of page p whose tokens are not pinned. */
static uint32_t unpinned(const span *s, size_t p, uint32_t slots)
{
    if (s->pinned == NULL)
        return slots;
    uint32_t result = slots;
    for (uint32_t bits = slots; bits != 0; bits &= bits - 1) {
        const int32_t j = position_in(s, p, bits);
        if (s->pinned[j / 32] >> j % 32 & 1)
            result &= ~(bits & -bits);
    }
    return result;
}

/* Clears these bits of page p in the row's bitmap, and reports their tokens; `reason` is one of DCP_REASONS. */
static void drop(span *s, uint32_t *live, size_t p, uint32_t gone, size_t row, int reason)
{
    live[p] &= ~gone;
    s->by[reason] += (size_t)__builtin_popcount(gone);
    for (uint32_t bits = gone; bits != 0; bits &= bits - 1)
        report(s, (int32_t)row, position_in(s, p, bits));
}

/* Drops the token at this position, if this layer still has it. */
static void drop_position(span *s, uint32_t *live, int32_t position, size_t row)
{
    for (size_t p = 0; p < s->slots->pages; p++)
        for (uint32_t bits = live[p]; bits != 0; bits &= bits - 1)
            if (position_in(s, p, bits) == position) {
                drop(s, live, p, unpinned(s, p, bits & -bits), row, DCP_INHERITED);
                return;
            }
}

/* Drops what the layer before dropped at this row. Pairs of earlier rows are other sequences'. */
static void drop_inherited(span *s, uint32_t *live, size_t row)
{
    const int32_t *pair = s->input->inherited;
    while (s->n_inherited < s->input->pairs && pair[2 * s->n_inherited] <= (int32_t)row) {
        if (pair[2 * s->n_inherited] == (int32_t)row)
            drop_position(s, live, pair[2 * s->n_inherited + 1], row);
        s->n_inherited++;
    }
}

/* Drops the live tokens whose score is not above the threshold (a tie or a NaN drops too), unless they came at most
 * `delay` positions before i. The scores are row r of products * scale + beta. */
static void drop_scored(span *s, uint32_t *live, tile *products, size_t r, size_t i, size_t row)
{
    const dcp_policy *policy = &s->cache->policy;
    const float scale = 1 / sqrtf((float)s->cache->shape.rank), beta = s->input->beta;
    for (size_t p = 0; p < s->slots->pages; p++) {
        uint32_t keep = 0;
        for (size_t j = 0; j < DCP_LANES; j++)
            keep |= (uint32_t)(products[p][r][j] * scale + beta > policy->threshold) << j;
        for (uint32_t bits = live[p] & ~keep; bits != 0; bits &= bits - 1)
            if (i - (size_t)position_in(s, p, bits) <= policy->delay)
                keep |= bits & -bits;
        drop(s, live, p, unpinned(s, p, live[p] & ~keep), row, DCP_LEARNED);
    }
}

/* The live slots of page p whose tokens are not pinned, and no rule by position keeps when token i arrives. */
static uint32_t unsafe(const span *s, size_t p, const uint32_t *live, size_t i)
{
    const dcp_policy *policy = &s->cache->policy;
    uint32_t result = 0;
    for (uint32_t bits = live[p]; bits != 0; bits &= bits - 1) {
        const size_t j = (size_t)position_in(s, p, bits);
        if (i - j >= policy->window && j >= policy->first && (policy->stride == 0 || j % policy->stride != 0))
            result |= bits & -bits;
    }
    return unpinned(s, p, result);
}

/* The attention that the token in the lowest of these slots got so far, all heads together. */
static float attention_got(const span *s, size_t p, uint32_t bits)
{
    float sum = 0;
    for (size_t h = 0; h < s->cache->shape.heads; h++)
        sum += field_row(s, p, DCP_SUMS, h)[__builtin_ctz(bits)];
    return sum;
}

/* Of n tokens looked at so far, the one that ranks lowest: by `value`; of equals the earliest. */
typedef struct {
    size_t n, page;
    uint32_t bit;
    float value;
} lowest;

/* Looks at one more token, in the lowest of these slots of page p. */
static void look_at(lowest *found, const span *s, size_t p, uint32_t bits, float value)
{
    if (found->n == 0 || value < found->value ||
        (value == found->value && position_in(s, p, bits) < position_in(s, found->page, found->bit)))
        *found = (lowest){.n = found->n, .page = p, .bit = bits & -bits, .value = value};
    found->n++;
}

/* Where there are more than `heavy` unsafe tokens, drops the one that got the least attention. Returns whether it
 * dropped one. */
static int drop_lightest(span *s, uint32_t *live, size_t i, size_t row)
{
    lowest found = {0};
    for (size_t p = 0; p < s->slots->pages; p++)
        for (uint32_t bits = unsafe(s, p, live, i); bits != 0; bits &= bits - 1)
            look_at(&found, s, p, bits, attention_got(s, p, bits));
    if (found.n <= s->cache->policy.heavy)
        return 0;
    drop(s, live, found.page, found.bit, row, s->cache->policy.heavy > 0 ? DCP_HEAVY : DCP_WINDOW);
    return 1;
}

/* Where more than `budget` live tokens came more than `delay` positions before i and are not pinned, drops the one with
 * the lowest score. Each row adds one token to those, so one is enough. The scores are as in drop_scored. */
static void drop_over_budget(span *s, uint32_t *live, tile *products, size_t r, size_t i, size_t row)
{
    const dcp_policy *policy = &s->cache->policy;
    const float scale = 1 / sqrtf((float)s->cache->shape.rank), beta = s->input->beta;
    lowest found = {0};
    for (size_t p = 0; p < s->slots->pages; p++)
        for (uint32_t bits = unpinned(s, p, live[p]); bits != 0; bits &= bits - 1)
            if (i - (size_t)position_in(s, p, bits) > policy->delay)
                look_at(&found, s, p, bits, products[p][r][__builtin_ctz(bits)] * scale + beta);
    if (found.n > policy->budget)
        drop(s, live, found.page, found.bit, row, DCP_BUDGET);
}

/* Drops the unsafe tokens, but not the heavy hitters among them. */
static void drop_unsafe(span *s, uint32_t *live, size_t i, size_t row)
{
    if (s->cache->policy.by_attention) {
        while (drop_lightest(s, live, i, row))
            continue;
        return;
    }
    for (size_t p = 0; p < s->slots->pages; p++)
        drop(s, live, p, unsafe(s, p, live, i), row, DCP_WINDOW);
}

/* Gives row i's token a slot, and writes there what judging other rows reads: position, k_int, no attention yet. Its
 * key and value are written later, by attend. */
static void insert(span *s, size_t i)
{
    const dcp_shape *shape = &s->cache->shape;
    s->slot_of[i] = dcp_slot_take(s->slots, &s->cache->pool);
    const size_t p = s->slot_of[i] / shape->page_slots, slot = s->slot_of[i] % shape->page_slots;
    own_page(s, p);
    positions_of(s->cache, s->slots->page[p])[slot] = (int32_t)s->slots->seen;
    s->slots->seen++;
    for (size_t c = 0; c < shape->rank; c++)
        field_row(s, p, DCP_K_INT, c)[slot] = s->input->k_int[(s->first + i) * s->input->int_stride + c];
    if (s->cache->policy.by_attention)
        for (size_t h = 0; h < shape->heads; h++)
            field_row(s, p, DCP_SUMS, h)[slot] = 0;
}

/* scores[p][r] = q_int of row i + r times the interaction keys of page p, for `rows` rows. */
static void score(const span *s, tile *scores, size_t i, size_t rows)
{
    const size_t stride = s->input->int_stride;
    const float *q_int = s->input->q_int + (s->first + i) * stride;
    for (size_t p = 0; p < s->slots->pages; p++)
        multiply(scores[p], q_int, stride, field_row(s, p, DCP_K_INT, 0), s->cache->shape.rank, DCP_FLOAT32, rows);
}

/* Drops from `live` what row i of the span drops. Its scores are in row r of the tiles. */
static void judge_row(span *s, uint32_t *live, tile *scores, size_t i, size_t r, size_t position)
{
    const size_t row = s->first + i;
    drop_inherited(s, live, row);
    if (s->cache->shape.rank > 0)
        drop_scored(s, live, scores, r, position, row);
    if (s->cache->policy.budget > 0)
        drop_over_budget(s, live, scores, r, position, row);
    if (s->cache->policy.window > 0)
        drop_unsafe(s, live, position, row);
}

/* One row: drop first, then take a slot, perhaps one just freed. Several rows: take all their slots first, and mark
 * each live from its own row on; slots freed in between are not reused. */
void judge(span *s, tile *scores)
{
    const size_t list = s->cache->list_pages, n = s->cache->pool.page_slots, seen = s->slots->seen;
    size_t scored = 0, end = 0; /* rows whose scores are in the tiles: scored .. end - 1 */
    memset(s->live, 0, list * sizeof *s->live);
    memcpy(s->live, s->slots->bitmap, s->slots->pages * sizeof *s->live);
    if (s->rows > 1)
        for (size_t i = 0; i < s->rows; i++)
            insert(s, i);
    for (size_t i = 0; i < s->rows; i++) {
        uint32_t *live = s->live + i * list;
        if (i > 0)
            memcpy(live, live - list, list * sizeof *live);
        if (i == end) {
            scored = i;
            end += tile_rows(s->rows - i);
            if (s->cache->shape.rank > 0)
                score(s, scores, scored, end - scored);
        }
        judge_row(s, live, scores, i, i - scored, seen + i);
        if (s->rows == 1) {
            dcp_slots_keep(s->slots, live);
            insert(s, i);
        }
        live[s->slot_of[i] / n] |= UINT32_C(1) << s->slot_of[i] % n;
    }
    if (s->cache->policy.by_attention) /* the rows' attention is added to the sums of all pages */
        for (size_t p = 0; p < s->slots->pages; p++)
            own_page(s, p);
}
