/* slots.c - pages, their live bitmaps, and the lowest free slot. No float is read or moved here. */

#include "common.h"

size_t dcp_pages_for(size_t tokens, size_t page_slots)
{
    return tokens / page_slots + (tokens % page_slots != 0);
}

size_t dcp_page_bytes(const dcp_pool *pool)
{
    return pool->area_bytes[DCP_KEYS] + pool->area_bytes[DCP_REST] + pool->area_bytes[DCP_VALUES];
}

int dcp_pool_list(dcp_pool *pool, dcp_page *idle, size_t room)
{
    if (room < pool->pages + pool->n_spare)
        return DCP_ENOROOM;
    if (pool->idle != NULL)
        memcpy(idle, pool->idle, (pool->n_spare + pool->n_free) * sizeof *idle);
    pool->idle = idle;
    pool->room = room;
    return DCP_OK;
}

int dcp_pool_add(dcp_pool *pool, unsigned char *memory, size_t pages)
{
    if (pages > pool->room || pool->pages + pool->n_spare > pool->room - pages)
        return DCP_ENOROOM;
    memmove(pool->idle + pages, pool->idle, (pool->n_spare + pool->n_free) * sizeof *pool->idle);
    for (size_t k = 0; k < DCP_AREAS; k++) {
        for (size_t i = 0; i < pages; i++) /* reversed: the last idle page is taken first, so pages go in order */
            pool->idle[pages - 1 - i].area[k] = memory + i * pool->area_bytes[k];
        memory += pages * pool->area_bytes[k];
    }
    pool->n_spare += pages;
    return DCP_OK;
}

int dcp_pool_grow(dcp_pool *pool, size_t n_free)
{
    const size_t more = n_free > pool->n_free ? n_free - pool->n_free : 0;
    if (more > pool->n_spare || (more > 0 && (pool->pages > pool->most || more > pool->most - pool->pages)))
        return DCP_ENOROOM;
    pool->n_free += more;
    pool->n_spare -= more;
    pool->pages += more;
    return DCP_OK;
}

void dcp_pool_trim(dcp_pool *pool)
{
    while (pool->n_free > 0) {
        for (size_t k = 0; k < DCP_AREAS; k++)
            madvise(pool->idle[pool->n_spare].area[k], pool->area_bytes[k], MADV_DONTNEED);
        pool->n_spare++;
        pool->n_free--;
        pool->pages--;
    }
}

uint32_t *dcp_page_owners(dcp_page page)
{
    return (uint32_t *)(void *)page.area[DCP_REST];
}

/* Pages are counted by an atomic operation, not under a lock: a lock that is held while the process forks would stay
 * held in the child for ever. */
dcp_page dcp_page_take(dcp_pool *pool)
{
    size_t n;
#pragma omp atomic capture
    n = --pool->n_free;
    const dcp_page page = pool->idle[pool->n_spare + n];
    *dcp_page_owners(page) = 1;
    return page;
}

void dcp_page_free(dcp_pool *pool, dcp_page page)
{
    uint32_t *owners = dcp_page_owners(page);
    *owners -= 1;
    if (*owners == 0) {
        pool->idle[pool->n_spare + pool->n_free] = page;
        pool->n_free++;
    }
}

void note_peak(dcp_pool *pool)
{
    const size_t owned = pool->pages - pool->n_free;
    pool->peak = owned > pool->peak ? owned : pool->peak;
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
