/* slots.c - pages, their live bitmaps, and the lowest free slot. No float is read or moved here. */

#include "common.h"

size_t dcp_pages_for(size_t tokens, size_t page_slots)
{
    return tokens / page_slots + (tokens % page_slots != 0);
}

int dcp_pool_add(dcp_pool *pool, unsigned char *memory, size_t pages)
{
    const size_t n = pool->n_spare + pool->n_free;
    dcp_page *idle = realloc(pool->idle, (pool->n_spare + pool->pages + pages) * sizeof *idle);
    if (idle == NULL)
        return DCP_ENOMEM;
    memmove(idle + pages, idle, n * sizeof *idle);
    for (size_t k = 0; k < DCP_PIECES; memory += pages * pool->piece_bytes[k++])
        for (size_t i = 0; i < pages; i++) /* the last of idle ones is taken first: so they are in order */
            idle[pages - 1 - i].piece[k] = memory + i * pool->piece_bytes[k];
    pool->idle = idle;
    pool->n_spare += pages;
    return DCP_OK;
}

int dcp_pool_grow(dcp_pool *pool, size_t n_free)
{
    const size_t more = n_free > pool->n_free ? n_free - pool->n_free : 0;
    if (more > pool->n_spare)
        return DCP_ENOROOM;
    pool->n_free += more, pool->n_spare -= more, pool->pages += more;
    return DCP_OK;
}

void dcp_pool_trim(dcp_pool *pool)
{
    for (; pool->n_free > 0; pool->n_free--, pool->n_spare++, pool->pages--)
        for (size_t k = 0; k < DCP_PIECES; k++)
            madvise(pool->idle[pool->n_spare].piece[k], pool->piece_bytes[k], MADV_DONTNEED);
}

dcp_page dcp_page_take(dcp_pool *pool)
{
    size_t n; /* no lock: one that is held when the process is forked stays so in the child */
#pragma omp atomic capture
    n = --pool->n_free;
    return pool->idle[pool->n_spare + n];
}

void dcp_page_free(dcp_pool *pool, dcp_page page)
{
    size_t n;
#pragma omp atomic capture
    n = pool->n_free++;
    pool->idle[pool->n_spare + n] = page;
}

size_t dcp_slot_take(dcp_slots *slots, dcp_pool *pool)
{
    const uint32_t full = UINT32_MAX >> (32 - pool->page_slots);
    size_t p = 0;
    while (p < slots->pages && slots->bitmap[p] == full)
        p++;
    if (p == slots->pages) {
        slots->page[p] = dcp_page_take(pool);
        slots->bitmap[p] = 0;
        slots->pages++;
    }
    const size_t bit = (size_t)__builtin_ctz(~slots->bitmap[p]);
    slots->bitmap[p] |= UINT32_C(1) << bit;
    slots->live++;
    return p * pool->page_slots + bit;
}

void dcp_slots_keep(dcp_slots *slots, const uint32_t *bitmap)
{
    memcpy(slots->bitmap, bitmap, slots->pages * sizeof *bitmap);
    slots->live = 0;
    for (size_t p = 0; p < slots->pages; p++)
        slots->live += (size_t)__builtin_popcount(bitmap[p]);
}
