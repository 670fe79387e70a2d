/* sequence.c - sequences: forks that share pages, drafts, and the pages that a feed can need. */

#include "common.h"

/* The words of a bitmap with a bit for each position. */
static size_t position_words(const dcp_cache *cache)
{
    return (cache->shape.positions + 31) / 32;
}

/* The sequence, its layers, their pages' addresses, their bitmaps, which tokens are pinned. */
size_t dcp_sequence_bytes(const dcp_cache *cache)
{
    return sizeof(dcp_sequence) + position_words(cache) * sizeof(uint32_t) +
           cache->shape.layers * (sizeof(dcp_slots) + cache->list_pages * (sizeof(dcp_page) + sizeof(uint32_t)));
}

dcp_sequence *dcp_sequence_init(const dcp_cache *cache, void *memory)
{
    dcp_sequence *sequence = memory;
    *sequence = (dcp_sequence){.layer = (dcp_slots *)(sequence + 1)};
    dcp_page *page = (dcp_page *)(sequence->layer + cache->shape.layers);
    uint32_t *bitmap = (uint32_t *)(page + cache->shape.layers * cache->list_pages);
    for (size_t l = 0; l < cache->shape.layers; l++)
        sequence->layer[l] = (dcp_slots){.page = page + l * cache->list_pages,
                                         .bitmap = bitmap + l * cache->list_pages};
    sequence->pinned = bitmap + cache->shape.layers * cache->list_pages;
    memset(sequence->pinned, 0, position_words(cache) * sizeof(uint32_t));
    return sequence;
}

/* Whether the sequence has no tokens, and was not released. */
static int is_empty(const dcp_cache *cache, const dcp_sequence *sequence)
{
    for (size_t l = 0; l < cache->shape.layers; l++)
        if (sequence->layer[l].seen > 0)
            return 0;
    return !sequence->released;
}

/* Makes `to`, which owns no page, one more owner of the pages of `from`, with the same tokens live. */
static void copy_slots(dcp_slots *to, const dcp_slots *from)
{
    memcpy(to->page, from->page, from->pages * sizeof *from->page);
    for (size_t p = 0; p < from->pages; p++)
        *dcp_page_owners(from->page[p]) += 1;
    to->pages = from->pages;
    to->seen = from->seen;
    dcp_slots_keep(to, from->bitmap);
}

/* Gives `to`, which owns no page, the tokens and pins of `from`. */
static void copy_sequence(const dcp_cache *cache, dcp_sequence *to, const dcp_sequence *from)
{
    for (size_t l = 0; l < cache->shape.layers; l++)
        copy_slots(&to->layer[l], &from->layer[l]);
    to->pins = from->pins;
    memcpy(to->pinned, from->pinned, position_words(cache) * sizeof(uint32_t));
}

int dcp_sequence_fork(const dcp_cache *cache, dcp_sequence *child, const dcp_sequence *parent)
{
    if (parent->released || !is_empty(cache, child))
        return DCP_EINVAL;
    copy_sequence(cache, child, parent);
    return DCP_OK;
}

void dcp_sequence_release(dcp_cache *cache, dcp_sequence *sequence)
{
    sequence->released = 1;
    for (size_t l = 0; l < cache->shape.layers; l++) {
        dcp_slots *slots = &sequence->layer[l];
        while (slots->pages > 0) {
            slots->pages--;
            dcp_page_free(&cache->pool, slots->page[slots->pages]);
        }
        slots->live = 0;
    }
}

int may_drop(const dcp_cache *cache)
{
    return cache->shape.rank > 0 || cache->policy.window > 0 || cache->policy.by_attention;
}

/* How many pages with other owners `count` more tokens may have to be copied for. If nothing is dropped, they go into
 * the slots that are free now, the lowest first; else any page may be written to. */
static size_t pages_to_copy(const dcp_slots *slots, size_t count, size_t page_slots, int drops)
{
    size_t pages = 0;
    for (size_t p = 0; p < slots->pages && count > 0; p++) {
        const size_t room = page_slots - (size_t)__builtin_popcount(slots->bitmap[p]);
        pages += (drops || room > 0) && *dcp_page_owners(slots->page[p]) > 1;
        if (!drops)
            count -= room < count ? room : count;
    }
    return pages;
}

size_t dcp_more_pages(const dcp_cache *cache, dcp_sequence *const *sequence, const size_t *count, size_t batch,
                      size_t first, size_t end, int drops)
{
    const size_t n = cache->pool.page_slots;
    size_t pages = 0;
    for (size_t b = 0; b < batch; b++)
        for (size_t l = first; l < end; l++) {
            const dcp_slots *slots = &sequence[b]->layer[l];
            pages += dcp_pages_for(slots->live + count[b], n) - slots->pages + pages_to_copy(slots, count[b], n, drops);
        }
    return pages;
}

int dcp_sequence_adopt(dcp_cache *cache, dcp_sequence *const *sequence, dcp_sequence *const *draft, const size_t *count,
                       size_t batch)
{
    for (size_t b = 0; b < batch; b++)
        for (size_t l = 0; l < cache->shape.layers; l++)
            if (sequence[b]->released || draft[b]->released ||
                sequence[b]->layer[l].seen + count[b] != draft[b]->layer[l].seen)
                return DCP_EINVAL;
    for (size_t b = 0; b < batch; b++) {
        dcp_sequence_release(cache, sequence[b]);
        copy_sequence(cache, sequence[b], draft[b]);
        sequence[b]->released = 0;
        dcp_sequence_release(cache, draft[b]);
    }
    return DCP_OK;
}

int dcp_sequence_fill(dcp_cache *cache, dcp_sequence *sequence, size_t seen, const size_t *pages,
                      const uint32_t *bitmap)
{
    dcp_pool *pool = &cache->pool;
    size_t total = 0;
    for (size_t l = 0; l < cache->shape.layers; l++) {
        if (pages[l] > cache->list_pages)
            return DCP_EINVAL;
        total += pages[l];
    }
    if (!is_empty(cache, sequence))
        return DCP_EINVAL;
    if (total > pool->n_free)
        return DCP_ENOROOM;
    for (size_t l = 0; l < cache->shape.layers; l++) {
        dcp_slots *slots = &sequence->layer[l];
        for (size_t p = 0; p < pages[l]; p++)
            slots->page[p] = dcp_page_take(pool);
        slots->pages = pages[l];
        slots->seen = seen;
        dcp_slots_keep(slots, bitmap);
        bitmap += pages[l];
    }
    note_peak(pool);
    return DCP_OK;
}
