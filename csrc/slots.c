/* slots.c - pages, their live bitmaps, and the lowest free slot. No float is read or moved here. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "dcp.h"

size_t dcp_pages_for(size_t tokens, size_t page_slots)
{
    return tokens / page_slots + (tokens % page_slots != 0);
}

int dcp_pool_grow(dcp_pool *pool, size_t n_free)
{
    if (n_free <= pool->n_free)
        return DCP_OK;
    size_t more = n_free - pool->n_free;
    if (more > pool->max_pages - pool->pages)
        return DCP_ENOMEM;
    float **table = realloc(pool->free_page, (pool->pages + more) * sizeof *table);
    if (table == NULL)
        return DCP_ENOMEM;
    for (pool->free_page = table; pool->n_free < n_free; pool->pages++) {
        float *page = aligned_alloc(64, pool->page_bytes);
        if (page == NULL)
            return DCP_ENOMEM;
        table[pool->n_free++] = page;
    }
    return DCP_OK;
}

void dcp_pool_clear(dcp_pool *pool)
{
    while (pool->n_free > 0)
        free(pool->free_page[--pool->n_free]);
    free(pool->free_page);
}

size_t dcp_slot_take(dcp_slots *slots, dcp_pool *pool)
{
    const uint64_t full = UINT64_MAX >> (64 - pool->page_slots);
    size_t p = 0;
    while (p < slots->pages && slots->bitmap[p] == full)
        p++;
    if (p == slots->pages) {
        slots->page[p] = pool->free_page[--pool->n_free];
        slots->bitmap[p] = 0;
        slots->pages++;
    }
    size_t bit = (size_t)__builtin_ctzll(~slots->bitmap[p]);
    slots->bitmap[p] |= UINT64_C(1) << bit;
    slots->live++;
    return p * pool->page_slots + bit;
}

void dcp_slot_drop(dcp_slots *slots, size_t slot, size_t page_slots)
{
    slots->bitmap[slot / page_slots] &= ~(UINT64_C(1) << slot % page_slots);
    slots->live--;
}

uint64_t dcp_page_release(dcp_slots *slots, dcp_pool *pool)
{
    size_t last = --slots->pages;
    slots->live -= (size_t)__builtin_popcountll(slots->bitmap[last]);
    pool->free_page[pool->n_free++] = slots->page[last];
    return slots->bitmap[last];
}
