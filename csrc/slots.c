/* slots.c - pages, their live bitmaps, and the lowest free slot. No float is read or moved here. */

#include "common.h"

size_t dcp_pages_for(size_t tokens, size_t page_slots)
{
    return tokens / page_slots + (tokens % page_slots != 0);
}

/* Maps one more chunk, when no page is spare: its pages are, as the system has given them no memory yet. */
static int map_chunk(dcp_pool *pool)
{
    const size_t more = pool->chunk_pages, bytes = more * pool->page_bytes;
    unsigned char **idle = realloc(pool->idle, (pool->mapped + more) * sizeof *idle);
    if (idle == NULL)
        return DCP_ENOMEM;
    pool->idle = idle;
    unsigned char *chunk = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (chunk == MAP_FAILED)
        return DCP_ENOMEM;
#ifdef MADV_HUGEPAGE
    madvise(chunk, bytes, MADV_HUGEPAGE); /* fewer addresses to translate while keys are read in order */
#endif
    memmove(idle + more, idle, pool->n_free * sizeof *idle);
    for (size_t i = 0; i < more; i++)
        idle[i] = chunk + (more - 1 - i) * pool->page_bytes;
    pool->n_spare = more;
    pool->mapped += more;
    return DCP_OK;
}

int dcp_pool_grow(dcp_pool *pool, size_t n_free)
{
    if (n_free > pool->n_free && n_free - pool->n_free > pool->max_pages - pool->pages)
        return DCP_ENOMEM;
    for (; pool->n_free < n_free; pool->n_free++, pool->n_spare--, pool->pages++)
        if (pool->n_spare == 0 && map_chunk(pool) != DCP_OK)
            return DCP_ENOMEM;
    return DCP_OK;
}

void dcp_pool_trim(dcp_pool *pool)
{
    for (; pool->n_free > 0; pool->n_free--, pool->n_spare++, pool->pages--)
        madvise(pool->idle[pool->n_spare], pool->page_bytes, MADV_DONTNEED);
}

void dcp_pool_clear(dcp_pool *pool)
{
    for (size_t i = 0; i < pool->n_free + pool->n_spare; i++)
        munmap(pool->idle[i], pool->page_bytes);
    free(pool->idle);
}

unsigned char *dcp_page_take(dcp_pool *pool)
{
    size_t n; /* no lock: one that is held when the process is forked stays so in the child */
#pragma omp atomic capture
    n = --pool->n_free;
    return pool->idle[pool->n_spare + n];
}

void dcp_page_free(dcp_pool *pool, unsigned char *page)
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
