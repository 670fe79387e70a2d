/* cache.c - what a slot holds: the layout of a page, sequences, moving a token. */

#include "step.h"
#include <unistd.h>

/* Sets where the fields of a page's rest start, and the bytes of its areas. */
static void lay_out_page(dcp_cache *cache)
{
    const dcp_shape *shape = &cache->shape;
    const size_t system = (size_t)sysconf(_SC_PAGESIZE), row = DCP_LANES * sizeof(float);
    const size_t scales = shape->kv == DCP_INT8 ? shape->heads : 0;
    const size_t sums = cache->policy.by_attention ? shape->heads : 0;
    const size_t rows[DCP_FIELDS] = {scales, scales, shape->rank, sums, 1};
    size_t rest = 0;
    for (size_t f = 0; f < DCP_FIELDS; f++) {
        cache->field[f] = rest;
        rest += rows[f] * row;
    }
    const size_t bytes[DCP_AREAS] = {shape->heads * panel_bytes(shape->head_dim, shape->kv), rest,
                                     shape->heads * cache->v_panels * panel_bytes(shape->page_slots, shape->kv)};
    for (size_t k = 0; k < DCP_AREAS; k++)
        cache->pool.area_bytes[k] = (bytes[k] + system - 1) / system * system;
}

int dcp_cache_init(dcp_cache *cache, const dcp_shape *shape, const dcp_policy *policy)
{
    const size_t most = 1 << 24;
    if (shape->layers - 1 >= most || shape->positions - 1 >= most || shape->heads - 1 >= most ||
        shape->head_dim - 1 >= most || shape->heads * shape->head_dim > most || shape->rank > most ||
        shape->page_slots - 1 >= DCP_LANES || shape->threads - 1 >= most || shape->kv < DCP_FLOAT32 ||
        shape->kv > DCP_INT8)
        return DCP_EINVAL;
    *cache = (dcp_cache){.shape = *shape, .policy = *policy, .channels = shape->heads * shape->head_dim,
                         .v_panels = (shape->head_dim + DCP_LANES - 1) / DCP_LANES,
                         .list_pages = dcp_pages_for(shape->positions, shape->page_slots)};
    lay_out_page(cache);
    cache->pool.page_slots = shape->page_slots;
    cache->pool.most = shape->max_bytes == 0 ? SIZE_MAX : shape->max_bytes / dcp_page_bytes(&cache->pool);
    return DCP_OK;
}

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

int dcp_sequence_fork(dcp_cache *cache, dcp_sequence *child, const dcp_sequence *parent)
{
    size_t pages = 0;
    for (size_t l = 0; l < cache->shape.layers; l++)
        pages += parent->layer[l].pages;
    if (parent->released || child->released)
        return DCP_EINVAL;
    if (pages > cache->pool.n_free)
        return DCP_ENOROOM;
    for (size_t l = 0; l < cache->shape.layers; l++) {
        const dcp_slots *from = &parent->layer[l];
        dcp_slots *to = &child->layer[l];
        for (size_t p = 0; p < from->pages; p++) {
            to->page[p] = dcp_page_take(&cache->pool);
            for (size_t k = 0; k < DCP_AREAS; k++)
                memcpy(to->page[p].area[k], from->page[p].area[k], cache->pool.area_bytes[k]);
        }
        to->pages = from->pages;
        to->seen = from->seen;
        dcp_slots_keep(to, from->bitmap);
    }
    child->pins = parent->pins;
    memcpy(child->pinned, parent->pinned, position_words(cache) * sizeof(uint32_t));
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

/* Copies one row's number of a panel of values, from row s to row t. A row of floats is copied whole. */
static void copy_value_row(unsigned char *new, size_t t, const unsigned char *old, size_t s, int kv)
{
    if (kv == DCP_FLOAT32) {
        memcpy(new + t * 4 * DCP_LANES, old + s * 4 * DCP_LANES, 4 * DCP_LANES);
        return;
    }
    for (size_t j = 0; j < DCP_LANES; j++)
        memcpy(new + offset(t, j, kv), old + offset(s, j, kv), (size_t)4 >> kv);
}

/* Copies what slot s of page `from` holds to slot t of page `to`. */
static void copy_token(const dcp_cache *cache, dcp_page to, size_t t, dcp_page from, size_t s)
{
    const size_t panel = panel_bytes(cache->pool.page_slots, cache->shape.kv);
    for (size_t k = DCP_KEYS; k <= DCP_REST; k++)
        for (size_t at = 0; at < cache->pool.area_bytes[k]; at += 4 * DCP_LANES)
            memcpy(to.area[k] + at + 4 * t, from.area[k] + at + 4 * s, 4);
    for (size_t i = 0; i < cache->shape.heads * cache->v_panels; i++)
        copy_value_row(to.area[DCP_VALUES] + i * panel, t, from.area[DCP_VALUES] + i * panel, s, cache->shape.kv);
}

void compact(dcp_cache *cache, dcp_slots *slots, const uint32_t *bitmap)
{
    const size_t n = cache->pool.page_slots;
    dcp_slots_keep(slots, bitmap);
    while (slots->pages > dcp_pages_for(slots->live, n)) {
        /* The last page leaves the list first: the lowest free slots are then all in the pages that stay. */
        slots->pages--;
        const uint32_t moving = slots->bitmap[slots->pages];
        const dcp_page from = slots->page[slots->pages];
        slots->live -= (size_t)__builtin_popcount(moving);
        for (uint32_t bits = moving; bits != 0; bits &= bits - 1) {
            const size_t slot = dcp_slot_take(slots, &cache->pool);
            copy_token(cache, slots->page[slot / n], slot % n, from, (size_t)__builtin_ctz(bits));
        }
        dcp_page_free(&cache->pool, from);
    }
}

int32_t *positions_of(const dcp_cache *cache, dcp_page page)
{
    return (int32_t *)(void *)(page.area[DCP_REST] + cache->field[DCP_POSITION]);
}

size_t dcp_slot_table(int32_t *table, size_t pages, const dcp_cache *cache, const dcp_slots *slots)
{
    const size_t n = cache->pool.page_slots;
    for (size_t p = 0; p < pages && p < slots->pages; p++)
        for (size_t slot = 0; slot < n; slot++)
            table[p * n + slot] = slots->bitmap[p] >> slot & 1 ? positions_of(cache, slots->page[p])[slot] : -1;
    return slots->pages;
}
