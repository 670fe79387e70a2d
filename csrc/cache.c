/* cache.c - what a slot holds: sequences, their room, moving a token. */

#include "common.h"

void dcp_cache_clear(dcp_cache *cache)
{
    while (cache->first != NULL)
        dcp_sequence_free(cache, cache->first);
    free(cache->pool.idle);
}

dcp_sequence *dcp_sequence_new(dcp_cache *cache)
{
    /* One allocation: the sequence, its layers, their pages' addresses, their bitmaps. */
    const size_t entries = cache->layers * cache->list_pages;
    dcp_sequence *sequence = calloc(1, sizeof *sequence + cache->layers * sizeof(dcp_slots) +
                                           entries * (sizeof(uint32_t) + sizeof(dcp_page)));
    if (sequence == NULL)
        return NULL;
    sequence->layer = (dcp_slots *)(sequence + 1);
    dcp_page *page = (dcp_page *)(sequence->layer + cache->layers);
    for (size_t l = 0; l < cache->layers; l++) {
        sequence->layer[l].page = page + l * cache->list_pages;
        sequence->layer[l].bitmap = (uint32_t *)(page + entries) + l * cache->list_pages;
    }
    sequence->next = cache->first;
    cache->first = sequence;
    return sequence;
}

dcp_sequence *dcp_sequence_fork(dcp_cache *cache, const dcp_sequence *parent)
{
    size_t pages = 0;
    for (size_t l = 0; l < cache->layers; l++)
        pages += parent->layer[l].pages;
    dcp_sequence *child = pages <= cache->pool.n_free ? dcp_sequence_new(cache) : NULL;
    for (size_t l = 0; child != NULL && l < cache->layers; l++) {
        const dcp_slots *from = &parent->layer[l];
        dcp_slots *to = &child->layer[l];
        for (; to->pages < from->pages; to->pages++) {
            to->page[to->pages] = dcp_page_take(&cache->pool);
            for (size_t k = 0; k < DCP_PIECES; k++)
                memcpy(to->page[to->pages].piece[k], from->page[to->pages].piece[k], cache->pool.piece_bytes[k]);
        }
        to->seen = from->seen;
        dcp_slots_keep(to, from->bitmap);
    }
    return child;
}

void dcp_sequence_free(dcp_cache *cache, dcp_sequence *sequence)
{
    for (size_t l = 0; l < cache->layers; l++)
        for (size_t p = 0; p < sequence->layer[l].pages; p++)
            dcp_page_free(&cache->pool, sequence->layer[l].page[p]);
    dcp_sequence **link = &cache->first;
    while (*link != sequence)
        link = &(*link)->next;
    *link = sequence->next;
    free(sequence);
}

size_t dcp_more_pages(const dcp_cache *cache, dcp_sequence *const *sequence, const size_t *count, size_t batch,
                      size_t first, size_t end)
{
    size_t pages = 0;
    for (size_t b = 0; b < batch; b++)
        for (size_t l = first; l < end; l++)
            pages += dcp_pages_for(sequence[b]->layer[l].live + count[b], cache->pool.page_slots) -
                     sequence[b]->layer[l].pages;
    return pages;
}

/* Copies what slot s of page `from` holds to slot t of page `to`. */
static void copy_token(const dcp_cache *cache, dcp_page to, size_t t, dcp_page from, size_t s)
{
    for (size_t k = DCP_KEYS; k <= DCP_REST; k++)
        for (size_t at = 0; at < cache->pool.piece_bytes[k]; at += 4 * DCP_LANES)
            memcpy(to.piece[k] + at + 4 * t, from.piece[k] + at + 4 * s, 4);
    for (size_t i = 0; i < cache->heads * cache->v_panels; i++) {
        const size_t at = i * panel_bytes(cache->pool.page_slots, cache->kv);
        unsigned char *new = to.piece[DCP_VALUES] + at, *old = from.piece[DCP_VALUES] + at;
        if (cache->kv == DCP_FLOAT32) /* a row of its own */
            memcpy(new + t * 4 * DCP_LANES, old + s * 4 * DCP_LANES, 4 * DCP_LANES);
        for (size_t j = 0; j < DCP_LANES && cache->kv != DCP_FLOAT32; j++)
            memcpy(new + offset(t, j, cache->kv), old + offset(s, j, cache->kv), (size_t)4 >> cache->kv);
    }
}

void dcp_compact(dcp_cache *cache, dcp_slots *slots, const uint32_t *bitmap)
{
    const size_t n = cache->pool.page_slots;
    dcp_slots_keep(slots, bitmap);
    while (slots->pages > dcp_pages_for(slots->live, n)) {
        /* The last page leaves the list first: the lowest free slots are then all in the pages that stay. */
        uint32_t bits = slots->bitmap[--slots->pages];
        const dcp_page from = slots->page[slots->pages];
        for (slots->live -= (size_t)__builtin_popcount(bits); bits; bits &= bits - 1) {
            const size_t slot = dcp_slot_take(slots, &cache->pool);
            copy_token(cache, slots->page[slot / n], slot % n, from, (size_t)__builtin_ctz(bits));
        }
        dcp_page_free(&cache->pool, from);
    }
}

int32_t *dcp_positions(const dcp_cache *cache, dcp_page page)
{
    return (int32_t *)(void *)(page.piece[DCP_REST] + cache->part[DCP_POSITION]);
}
