/* cache.c - what a slot holds: insert, compact, release. The only file that moves keys and values. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "dcp.h"

/* With sizes below 2^24 no product of two of them and a few small factors overflows; a page may fail to be allocated. */
_Static_assert(sizeof(size_t) == 8, "64-bit only");
static const size_t SIZE_LIMIT = 1 << 24;

/* n floats, rounded up so that what follows starts at a multiple of 64 bytes. */
static size_t aligned_floats(size_t n)
{
    return (n + 15) / 16 * 16;
}

dcp_cache *dcp_cache_new(size_t layers, size_t positions, size_t heads, size_t channels, size_t rank,
                         size_t page_slots, size_t max_bytes)
{
    const size_t sizes[] = {layers, positions, heads, channels, rank + 1, page_slots};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] == 0 || sizes[i] > SIZE_LIMIT)
            return NULL;
    if (page_slots > 64 || channels % heads != 0)
        return NULL;
    dcp_cache *cache = calloc(1, sizeof *cache);
    size_t list_pages = dcp_pages_for(positions, page_slots);
    float *scratch = malloc(heads * list_pages * page_slots * sizeof *scratch);
    if (cache == NULL || scratch == NULL) {
        free(cache);
        free(scratch);
        return NULL;
    }
    *cache = (dcp_cache){.layers = layers, .positions = positions, .heads = heads, .channels = channels, .rank = rank,
                         .list_pages = list_pages, .scratch = scratch};
    cache->v_at = aligned_floats(page_slots * channels);
    cache->k_int_at = cache->v_at + aligned_floats(page_slots * channels);
    cache->position_at = cache->k_int_at + aligned_floats(page_slots * rank);
    cache->pool.page_slots = page_slots;
    cache->pool.page_bytes = (cache->position_at + aligned_floats(page_slots)) * sizeof(float);
    cache->pool.max_pages = (max_bytes ? max_bytes : SIZE_MAX) / cache->pool.page_bytes;
    return cache;
}

void dcp_cache_free(dcp_cache *cache)
{
    while (cache->first != NULL)
        dcp_sequence_free(cache, cache->first);
    dcp_pool_clear(&cache->pool);
    free(cache->scratch);
    free(cache);
}

dcp_sequence *dcp_sequence_new(dcp_cache *cache)
{
    /* One allocation: the sequence, its layers, their bitmaps, their pages' addresses. */
    size_t entries = cache->layers * cache->list_pages;
    dcp_sequence *sequence = calloc(1, sizeof *sequence + cache->layers * sizeof(dcp_slots) +
                                           entries * (sizeof(uint64_t) + sizeof(float *)));
    if (sequence == NULL)
        return NULL;
    sequence->layer = (dcp_slots *)(sequence + 1);
    uint64_t *bitmap = (uint64_t *)(sequence->layer + cache->layers);
    float **page = (float **)(bitmap + entries);
    for (size_t l = 0; l < cache->layers; l++) {
        sequence->layer[l].bitmap = bitmap + l * cache->list_pages;
        sequence->layer[l].page = page + l * cache->list_pages;
    }
    sequence->next = cache->first;
    cache->first = sequence;
    return sequence;
}

void dcp_sequence_free(dcp_cache *cache, dcp_sequence *sequence)
{
    for (size_t l = 0; l < cache->layers; l++)
        while (sequence->layer[l].pages > 0)
            dcp_page_release(&sequence->layer[l], &cache->pool);
    dcp_sequence **link = &cache->first;
    while (*link != sequence)
        link = &(*link)->next;
    *link = sequence->next;
    free(sequence);
}

int dcp_reserve(dcp_cache *cache, dcp_sequence *const *sequence, const size_t *count, size_t batch)
{
    size_t pages = 0;
    for (size_t b = 0; b < batch; b++)
        for (size_t l = 0; l < cache->layers; l++) {
            const dcp_slots *slots = &sequence[b]->layer[l];
            if (count[b] > cache->positions - slots->seen)
                return DCP_EINVAL;
            pages += dcp_pages_for(slots->live + count[b], cache->pool.page_slots) - slots->pages;
        }
    return dcp_pool_grow(&cache->pool, pages);
}

static void write_token(const dcp_cache *cache, float *page, size_t slot, const float *k, const float *v,
                        const float *k_int, int32_t position)
{
    const size_t C = cache->channels, r = cache->rank;
    memcpy(page + slot * C, k, C * sizeof *k);
    memcpy(page + cache->v_at + slot * C, v, C * sizeof *v);
    if (r > 0)
        memcpy(page + cache->k_int_at + slot * r, k_int, r * sizeof *k_int);
    memcpy(page + cache->position_at + slot, &position, sizeof position);
}

int32_t dcp_position(const dcp_cache *cache, const float *page, size_t slot)
{
    int32_t position;
    memcpy(&position, page + cache->position_at + slot, sizeof position);
    return position;
}

void dcp_insert(dcp_cache *cache, dcp_slots *slots, const float *k, const float *v, const float *k_int)
{
    size_t n = cache->pool.page_slots, slot = dcp_slot_take(slots, &cache->pool);
    write_token(cache, slots->page[slot / n], slot % n, k, v, k_int, (int32_t)slots->seen++);
}

void dcp_compact(dcp_cache *cache, dcp_slots *slots)
{
    const size_t n = cache->pool.page_slots, C = cache->channels, r = cache->rank;
    while (slots->pages > dcp_pages_for(slots->live, n)) {
        /* The last page leaves the list first: the lowest free slots are then all in the pages that stay. */
        uint64_t bits = dcp_page_release(slots, &cache->pool);
        const float *from = slots->page[slots->pages];
        for (; bits; bits &= bits - 1) {
            size_t s = (size_t)__builtin_ctzll(bits), slot = dcp_slot_take(slots, &cache->pool);
            write_token(cache, slots->page[slot / n], slot % n, from + s * C, from + cache->v_at + s * C,
                        from + cache->k_int_at + s * r, dcp_position(cache, from, s));
        }
    }
}

void dcp_slot_table(int32_t *table, const dcp_cache *cache, const dcp_slots *slots)
{
    const size_t n = cache->pool.page_slots;
    for (size_t p = 0; p < slots->pages; p++)
        for (size_t slot = 0; slot < n; slot++)
            table[p * n + slot] = slots->bitmap[p] >> slot & 1 ? dcp_position(cache, slots->page[p], slot) : -1;
}

dcp_stats dcp_cache_stats(const dcp_cache *cache)
{
    const dcp_pool *pool = &cache->pool;
    dcp_stats stats = {0, 0, (pool->pages - pool->n_free) * pool->page_bytes, pool->pages * pool->page_bytes};
    for (const dcp_sequence *sequence = cache->first; sequence != NULL; sequence = sequence->next)
        for (size_t l = 0; l < cache->layers; l++) {
            stats.live_tokens += sequence->layer[l].live;
            stats.slots += sequence->layer[l].pages * pool->page_slots;
        }
    return stats;
}

/* Fills the dead slots of a page with NaN. */
static void poison_page(const dcp_cache *cache, float *page, uint64_t live)
{
    const size_t C = cache->channels, r = cache->rank;
    for (size_t slot = 0; slot < cache->pool.page_slots; slot++) {
        if (live >> slot & 1)
            continue;
        for (size_t c = slot * C; c < (slot + 1) * C; c++)
            page[c] = page[cache->v_at + c] = NAN;
        for (size_t c = slot * r; c < (slot + 1) * r; c++)
            page[cache->k_int_at + c] = NAN;
    }
}

void dcp_poison(dcp_cache *cache)
{
    for (size_t i = 0; i < cache->pool.n_free; i++)
        poison_page(cache, cache->pool.free_page[i], 0);
    for (dcp_sequence *sequence = cache->first; sequence != NULL; sequence = sequence->next)
        for (size_t l = 0; l < cache->layers; l++)
            for (size_t p = 0; p < sequence->layer[l].pages; p++)
                poison_page(cache, sequence->layer[l].page[p], sequence->layer[l].bitmap[p]);
}
