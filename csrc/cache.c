/* cache.c - what a slot holds: the layout of a page, copying a page, moving a token. */

#include "step.h"
#include <unistd.h>

/* Sets where the fields of a page's rest start, and the bytes of its areas. */
static void lay_out_page(dcp_cache *cache)
{
    const dcp_shape *shape = &cache->shape;
    const size_t system = (size_t)sysconf(_SC_PAGESIZE), row = DCP_LANES * sizeof(float);
    const size_t scales = shape->kv == DCP_INT8 ? shape->heads : 0;
    const size_t sums = cache->policy.by_attention ? shape->heads : 0;
    const size_t rows[DCP_FIELDS] = {1, scales, scales, shape->rank, sums, 1};
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

/* The number of owners stays as it is until the round ends: so all threads see the same one, and a page that several of
 * them leave stays whole. */
void own_page(span *s, size_t p)
{
    const dcp_page shared = s->slots->page[p];
    if (*dcp_page_owners(shared) == 1)
        return;
    const dcp_page own = dcp_page_take(&s->cache->pool);
    for (size_t k = 0; k < DCP_AREAS; k++)
        memcpy(own.area[k], shared.area[k], s->cache->pool.area_bytes[k]);
    *dcp_page_owners(own) = 1;
    s->slots->page[p] = own;
    s->left[s->n_left] = shared;
    s->n_left++;
}

void give_up_left(span *s)
{
    for (size_t i = 0; i < s->n_left; i++)
        dcp_page_free(&s->cache->pool, s->left[i]);
    s->n_left = 0;
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
    const size_t panel = panel_bytes(cache->pool.page_slots, cache->shape.kv), row = 4 * DCP_LANES;
    const size_t start[] = {0, row}; /* the rest begins with the owners of the page */
    for (size_t k = DCP_KEYS; k <= DCP_REST; k++)
        for (size_t at = start[k]; at < cache->pool.area_bytes[k]; at += row)
            memcpy(to.area[k] + at + 4 * t, from.area[k] + at + 4 * s, 4);
    for (size_t i = 0; i < cache->shape.heads * cache->v_panels; i++)
        copy_value_row(to.area[DCP_VALUES] + i * panel, t, from.area[DCP_VALUES] + i * panel, s, cache->shape.kv);
}

void compact(span *s, const uint32_t *bitmap)
{
    dcp_cache *cache = s->cache;
    dcp_slots *slots = s->slots;
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
            own_page(s, slot / n);
            copy_token(cache, slots->page[slot / n], slot % n, from, (size_t)__builtin_ctz(bits));
        }
        s->left[s->n_left] = from;
        s->n_left++;
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
