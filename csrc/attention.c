/* attention.c - a step of one layer as named passes: judge, store, attend. */

#include "common.h"

/* The rows of one sequence that a round takes. */
typedef struct {
    const dcp_block *block;
    dcp_cache *cache;
    dcp_slots *slots;
    size_t row, rows;   /* of the block: the first, and how many */
    size_t *slot_of;    /* [rows]: where each row's own token goes */
    uint32_t *live;     /* [rows, list_pages]: the bitmaps in force for each row */
    int32_t *dropped;   /* [n_dropped, 2]: the sequence's own pairs (row, position) */
    size_t n_dropped;
    size_t n_inherited; /* the block's pairs that earlier rows have inherited */
} dcp_part;

/* cache->round: a part a sequence, then slot_of and live of all their rows. */
size_t dcp_round_bytes(const dcp_cache *cache, const size_t *count, size_t batch)
{
    size_t rows = 0;
    for (size_t b = 0; b < batch; b++)
        rows += count[b] < DCP_ROUND_ROWS ? count[b] : DCP_ROUND_ROWS;
    return batch * sizeof(dcp_part) + rows * (sizeof(size_t) + cache->list_pages * sizeof(uint32_t));
}

/* Row `row` of a part of page p, as floats. */
static float *lanes(const dcp_part *part, size_t p, int of, size_t row)
{
    return (float *)(void *)(part->slots->page[p].piece[DCP_REST] + part->cache->part[of]) + row * DCP_LANES;
}

/* The position of the token in the lowest of these slots. */
static int32_t position_in(const dcp_part *part, size_t p, uint32_t bits)
{
    return dcp_positions(part->cache, part->slots->page[p])[__builtin_ctz(bits)];
}

/* The slots of page p that are live for any of the rows i .. i + rows - 1. */
static uint32_t any_live(const dcp_part *part, size_t i, size_t p, size_t rows)
{
    uint32_t bits = 0;
    for (size_t r = i; r < i + rows; r++)
        bits |= part->live[r * part->cache->list_pages + p];
    return bits;
}

/* ---- judge: what each row drops ---- */

/* Clears these bits of page p in the row's bitmaps and reports their tokens, positions ascending within the row. */
static void drop(dcp_part *part, uint32_t *live, size_t p, uint32_t bits, size_t row)
{
    live[p] &= ~bits;
    for (; bits; bits &= bits - 1) {
        const int32_t new[2] = {(int32_t)row, position_in(part, p, bits)};
        int32_t *pair = part->dropped + 2 * part->n_dropped++;
        for (; pair > part->dropped && pair[-2] == new[0] && pair[-1] > new[1]; pair -= 2)
            memcpy(pair, pair - 2, sizeof new);
        memcpy(pair, new, sizeof new);
    }
}

/* The tokens that the layer before dropped at this row, where this layer still has them. */
static void drop_inherited(dcp_part *part, uint32_t *live, size_t row)
{
    for (; part->n_inherited < part->block->pairs; part->n_inherited++) {
        const int32_t *pair = part->block->inherited + 2 * part->n_inherited;
        if (pair[0] > (int32_t)row)
            return;
        for (size_t p = 0; p < part->slots->pages && pair[0] == (int32_t)row; p++)
            for (uint32_t bits = live[p]; bits; bits &= bits - 1)
                if (position_in(part, p, bits) == pair[1])
                    drop(part, live, p, bits & -bits, row);
    }
}

/* Every live token but those with s > threshold, so that a tie and a NaN drop, and those that came no more than `delay`
 * positions before i; s = row r of products * scale + beta. */
static void drop_scored(dcp_part *part, uint32_t *live, dcp_tile *products, size_t r, size_t i, size_t row)
{
    const dcp_policy *policy = &part->cache->policy;
    const float scale = 1 / sqrtf((float)part->cache->rank), beta = part->block->beta;
    for (size_t p = 0; p < part->slots->pages; p++) {
        uint32_t keep = 0;
        for (size_t j = 0; j < DCP_LANES; j++)
            keep |= (uint32_t)(products[p][r][j] * scale + beta > policy->threshold) << j;
        for (uint32_t bits = live[p] & ~keep; bits; bits &= bits - 1)
            keep |= i - (size_t)position_in(part, p, bits) <= policy->delay ? bits & -bits : 0;
        drop(part, live, p, live[p] & ~keep, row);
    }
}

/* The live slots of page p whose tokens are beyond the window of position i, and not safe by their own position. */
static uint32_t unsafe(const dcp_part *part, size_t p, const uint32_t *live, size_t i)
{
    const dcp_policy *policy = &part->cache->policy;
    uint32_t result = 0;
    for (uint32_t bits = live[p]; bits; bits &= bits - 1) {
        const size_t j = (size_t)position_in(part, p, bits);
        if (i - j >= policy->window && j >= policy->first && (policy->stride == 0 || j % policy->stride != 0))
            result |= bits & -bits;
    }
    return result;
}

/* The tokens that are not safe by their position; by_attention the one with the least attention over all heads, the
 * earliest of equals, until `heavy` are left. */
static void drop_unsafe(dcp_part *part, uint32_t *live, size_t i, size_t row)
{
    const dcp_policy *policy = &part->cache->policy;
    for (size_t p = 0; p < part->slots->pages && !policy->by_attention; p++)
        drop(part, live, p, unsafe(part, p, live, i), row);
    for (size_t candidates = policy->heavy + 1; policy->by_attention && candidates > policy->heavy;) {
        size_t page = 0;
        uint32_t bit = 0;
        float least = 0;
        candidates = 0;
        for (size_t p = 0; p < part->slots->pages; p++)
            for (uint32_t bits = unsafe(part, p, live, i); bits; bits &= bits - 1) {
                float total = 0;
                for (size_t h = 0; h < part->cache->heads; h++)
                    total += lanes(part, p, DCP_SUMS, h)[__builtin_ctz(bits)];
                if (candidates++ == 0 || total < least ||
                    (total == least && position_in(part, p, bits) < position_in(part, page, bit)))
                    least = total, page = p, bit = bits & -bits;
            }
        if (candidates > policy->heavy)
            drop(part, live, page, bit, row);
    }
}

/* Gives row i's token a slot; what the judging of rows reads of it is written now, keys and values later. */
static void insert(const dcp_part *part, size_t i)
{
    const size_t slot = part->slot_of[i] = dcp_slot_take(part->slots, &part->cache->pool);
    const size_t p = slot / part->cache->pool.page_slots, lane = slot % part->cache->pool.page_slots;
    dcp_positions(part->cache, part->slots->page[p])[lane] = (int32_t)part->slots->seen++;
    for (size_t c = 0; c < part->cache->rank; c++)
        lanes(part, p, DCP_K_INT, c)[lane] = part->block->k_int[(part->row + i) * part->block->int_stride + c];
    for (size_t h = 0; h < part->cache->heads && part->cache->policy.by_attention; h++)
        lanes(part, p, DCP_SUMS, h)[lane] = 0;
}

/* Works out which slots are live for each row, a row after the other. A single row's token takes a slot after the drops,
 * perhaps a dropped one's; those of many rows before: then slots of later rows are dead, and none is free within. */
static void judge(dcp_part *part, dcp_tile *scores)
{
    const dcp_cache *cache = part->cache;
    const size_t list = cache->list_pages, seen = part->slots->seen, stride = part->block->int_stride;
    uint32_t *live = part->live;
    memset(live, 0, list * sizeof *live);
    memcpy(live, part->slots->bitmap, part->slots->pages * sizeof *live);
    for (size_t i = 0; i < part->rows && part->rows > 1; i++)
        insert(part, i);
    for (size_t i = 0, tile = 0, end = 0; i < part->rows; i++, live += list) {
        const size_t row = part->row + i;
        if (cache->rank > 0 && i == end) {
            tile = i;
            end += tile_rows(part->rows - i);
            for (size_t p = 0; p < part->slots->pages; p++)
                dcp_multiply(scores[p], part->block->q_int + row * stride, stride, lanes(part, p, DCP_K_INT, 0),
                             cache->rank, DCP_FLOAT32, end - tile);
        }
        if (i > 0)
            memcpy(live, live - list, list * sizeof *live);
        drop_inherited(part, live, row);
        if (cache->rank > 0)
            drop_scored(part, live, scores, i - tile, seen + i, row);
        if (cache->policy.window > 0)
            drop_unsafe(part, live, seen + i, row);
        if (part->rows == 1) {
            dcp_slots_keep(part->slots, live);
            insert(part, i);
        }
        live[part->slot_of[i] / cache->pool.page_slots] |= UINT32_C(1) << part->slot_of[i] % cache->pool.page_slots;
    }
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

INLINE void store(const dcp_part *part, size_t i, size_t h, int kv)
{
    const dcp_cache *cache = part->cache;
    const size_t D = cache->head_dim, n = cache->pool.page_slots, p = part->slot_of[i] / n, slot = part->slot_of[i] % n;
    const float *k = part->block->k + (part->row + i) * part->block->stride + h * D;
    const float *v = part->block->v + (part->row + i) * part->block->stride + h * D;
    unsigned char *keys = part->slots->page[p].piece[DCP_KEYS] + h * panel_bytes(D, kv);
    unsigned char *values = part->slots->page[p].piece[DCP_VALUES] + h * cache->v_panels * panel_bytes(n, kv);
    for (size_t at = 0; at < panel_bytes(D, kv) && part->rows == 1; at += 64)
        __builtin_prefetch(keys + at, 1, 2); /* in order, before single numbers far apart in it are written */
    float k_inverse = 0, v_inverse = 0;
    if (kv == DCP_INT8) {
        lanes(part, p, DCP_K_SCALE, h)[slot] = int8_scale(k, D, &k_inverse);
        lanes(part, p, DCP_V_SCALE, h)[slot] = int8_scale(v, D, &v_inverse);
    }
    for (size_t d = 0; d < D; d++)
        put(keys, d, slot, k[d], kv, k_inverse);
    for (size_t d = 0; d < D; d++)
        put(values + d / DCP_LANES * panel_bytes(n, kv), slot, d % DCP_LANES, v[d], kv, v_inverse);
}

/* ---- attend ---- */

/* w[p][r] = softmax(scale * q k) over the live slots of row i + r, 0 elsewhere. Lane by lane: then the compiler does many
 * at once. Adds weights to the sums of attention; takes in scales of int8 keys and values. */
CLONES void dcp_softmax(dcp_tile *w, size_t r, const dcp_part *part, size_t i, size_t h)
{
    const uint32_t *live = part->live + (i + r) * part->cache->list_pages;
    const size_t pages = part->slots->pages;
    const int int8 = part->cache->kv == DCP_INT8, by_attention = part->cache->policy.by_attention;
    const float scale = part->block->scale;
    float max[DCP_LANES], sum[DCP_LANES] = {0};
    for (size_t j = 0; j < DCP_LANES; j++)
        max[j] = -INFINITY;
    for (size_t p = 0; p < pages; p++) {
        const float *k_scale = lanes(part, p, DCP_K_SCALE, h);
        for (size_t j = 0; j < DCP_LANES; j++) {
            const float s = live[p] >> j & 1 ? scale * w[p][r][j] * (int8 ? k_scale[j] : 1) : -INFINITY;
            w[p][r][j] = s;
            max[j] = s > max[j] ? s : max[j];
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
        float *restrict sums = lanes(part, p, DCP_SUMS, h), *restrict v_scale = lanes(part, p, DCP_V_SCALE, h);
        for (size_t j = 0; j < DCP_LANES; j++)
            w[p][r][j] *= inverse;
        for (size_t j = 0; j < DCP_LANES && by_attention; j++)
            sums[j] += w[p][r][j];
        for (size_t j = 0; j < DCP_LANES && int8; j++)
            w[p][r][j] *= live[p] >> j & 1 ? v_scale[j] : 0;
    }
}

/* Some heads of a part; the thread's scratch: for each head of the model a tile a page, and one a v_panel. */
typedef struct {
    const dcp_part *part;
    size_t first, end;
    dcp_tile *w, *sum;
} dcp_task;

/* Attends for rows i .. i + rows - 1 of the part. Pages are read from their start on, as memory likes it: of all these
 * heads the keys; then, page after page again, the values. */
static void attend_rows(float *out, const dcp_task *task, size_t i, size_t rows)
{
    const dcp_part *part = task->part;
    const dcp_cache *cache = part->cache;
    const size_t D = cache->head_dim, list = cache->list_pages, panels = cache->v_panels, stride = part->block->stride;
    const size_t k_bytes = panel_bytes(D, cache->kv), v_bytes = panel_bytes(cache->pool.page_slots, cache->kv);
    const float *q = part->block->q + (part->row + i) * stride;
    for (size_t p = 0; p < part->slots->pages; p++)
        for (size_t h = any_live(part, i, p, rows) ? task->first : task->end; h < task->end; h++)
            dcp_multiply(task->w[h * list + p], q + h * D, stride,
                         part->slots->page[p].piece[DCP_KEYS] + h * k_bytes, D, cache->kv, rows);
    for (size_t h = task->first; h < task->end; h++)
        for (size_t r = 0; r < rows; r++)
            dcp_softmax(task->w + h * list, r, part, i, h);
    for (size_t c = task->first * panels; c < task->end * panels; c++)
        memset(task->sum[c], 0, rows * sizeof *task->sum[c]);
    for (size_t p = 0; p < part->slots->pages; p++) {
        const uint32_t live = any_live(part, i, p, rows);
        for (size_t c = task->first * panels; c < task->end * panels; c++)
            dcp_add_live(task->sum[c], task->w[c / panels * list + p],
                         part->slots->page[p].piece[DCP_VALUES] + c * v_bytes, live, cache->kv, rows);
    }
    for (size_t c = task->first * panels; c < task->end * panels; c++)
        for (size_t r = 0, at = c % panels * DCP_LANES; r < rows; r++)
            memcpy(out + (part->row + i + r) * dcp_stride(cache->channels) + c / panels * D + at, task->sum[c][r],
                   (D - at < DCP_LANES ? D - at : DCP_LANES) * sizeof(float));
}

/* Stores the part's keys and values of the task's heads, then attends for each of its rows. */
static void attend(float *out, const dcp_task *task)
{
    const int kv = task->part->cache->kv;
    for (size_t i = 0; i < task->part->rows; i++)
        for (size_t h = task->first; h < task->end; h++)
            kv == DCP_FLOAT32 ? store(task->part, i, h, DCP_FLOAT32) : store(task->part, i, h, kv);
    for (size_t i = 0; i < task->part->rows; i += tile_rows(task->part->rows - i))
        attend_rows(out, task, i, tile_rows(task->part->rows - i));
}

/* ---- all of it, round by round ---- */

static int check_block(const dcp_cache *cache, const dcp_block *block)
{
    const size_t l = block->layer;
    if (l >= cache->layers)
        return DCP_EINVAL;
    for (size_t b = 0; b < block->batch; b++)
        if (block->start[b] != block->sequence[b]->layer[l].seen ||
            block->count[b] > cache->positions - block->start[b])
            return DCP_EINVAL;
    return dcp_more_pages(cache, block->sequence, block->count, block->batch, l, l + 1) <= cache->pool.n_free &&
           dcp_round_bytes(cache, block->count, block->batch) <= cache->round_bytes ? DCP_OK : DCP_ENOROOM;
}

/* A part a sequence, none of their rows done yet. */
static void start_parts(dcp_cache *cache, const dcp_block *block, int32_t *dropped)
{
    dcp_part *parts = cache->round;
    size_t row = 0, inherited = 0;
    for (size_t b = 0; b < block->batch; b++) {
        while (inherited < block->pairs && block->inherited[2 * inherited] < (int32_t)row)
            inherited++;
        parts[b] = (dcp_part){.block = block, .cache = cache, .slots = &block->sequence[b]->layer[block->layer],
                              .row = row, .dropped = dropped, .n_inherited = inherited};
        row += block->count[b];
        dropped += 2 * (block->start[b] + block->count[b]);
    }
}

/* The rows that each part takes next, `most` or fewer. Returns about how many multiplications they are; 0: none left. */
static size_t next_rows(dcp_cache *cache, const dcp_block *block, size_t done, size_t most)
{
    dcp_part *parts = cache->round;
    size_t *slot_of = (size_t *)(parts + block->batch), rows = 0, work = 0;
    for (size_t b = 0; b < block->batch; b++) {
        const size_t left = block->count[b] > done ? block->count[b] - done : 0;
        parts[b].row += parts[b].rows;
        parts[b].rows = left < most ? left : most;
        parts[b].slot_of = slot_of + rows;
        rows += parts[b].rows;
        work += parts[b].rows * (parts[b].slots->live + parts[b].rows) * cache->channels * 2;
    }
    uint32_t *live = (uint32_t *)(slot_of + rows);
    for (size_t b = 0; b < block->batch; live += parts[b++].rows * cache->list_pages)
        parts[b].live = live;
    return work;
}

/* A task is one sequence and some heads: all of them, unless there are too few sequences to go round. For rows of a
 * prompt one head, whose keys and values then stay close by from tile to tile. */
static void do_round(float *out, dcp_cache *cache, size_t batch, size_t threads)
{
    dcp_part *parts = cache->round;
    const size_t H = cache->heads, tiles = H * (cache->list_pages + cache->v_panels);
    size_t pieces = 1;
    for (size_t b = 0; b < batch; b++)
        pieces = parts[b].rows > 1 ? H : pieces;
    while (pieces < H && batch * pieces < 4 * threads && batch * pieces % threads != 0)
        pieces++;
#pragma omp parallel num_threads((int)threads)
    {
        dcp_tile *w = (dcp_tile *)cache->scratch + (size_t)omp_get_thread_num() * tiles;
#pragma omp for schedule(dynamic)
        for (size_t b = 0; b < batch; b++)
            if (parts[b].rows > 0)
                judge(&parts[b], w);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < batch * pieces; i++)
            if (parts[i / pieces].rows > 0)
                attend(out, &(dcp_task){&parts[i / pieces], i % pieces * H / pieces, (i % pieces + 1) * H / pieces, w,
                                        w + H * cache->list_pages});
#pragma omp for schedule(dynamic)
        for (size_t b = 0; b < batch; b++)
            if (parts[b].rows > 0) /* what the last row left alive is what the layer holds */
                dcp_compact(cache, parts[b].slots, parts[b].live + (parts[b].rows - 1) * cache->list_pages);
    }
}

ptrdiff_t dcp_step(float *out, int32_t *dropped, dcp_cache *cache, const dcp_block *block)
{
    const int error = check_block(cache, block);
    if (error != DCP_OK)
        return error;
    const size_t most = cache->policy.by_attention ? 1 : DCP_ROUND_ROWS;
    start_parts(cache, block, dropped);
    for (size_t done = 0, work; (work = next_rows(cache, block, done, most)) > 0; done += most) {
        const size_t threads = dcp_threads_for(work, block->threads);
        do_round(out, cache, block->batch, threads < cache->threads ? threads : cache->threads);
    }
    const dcp_part *parts = cache->round;
    size_t n = 0; /* the sequences' pairs, moved up to each other */
    for (size_t b = 0; b < block->batch; n += parts[b++].n_dropped)
        memmove(dropped + 2 * n, parts[b].dropped, 2 * parts[b].n_dropped * sizeof *dropped);
    return (ptrdiff_t)n;
}
