/* decode.c - libFuzzer over the entry points of the cache: bytes are a shape, a policy, then calls with valid memory and
 * arbitrary arguments. After each call every page is idle or has the owners that it counts, counts agree, and pinned
 * tokens are there; a call that fails has changed nothing. `make fuzz` compiles this together with csrc/, under AddressSanitizer and UBSan. */

#include <stddef.h>
#include <stdint.h>
#include "kernels.h"
#include "dcp.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SEQUENCES = 4, MOST_LAYERS = 3, POSITIONS = 40, VOCAB = 7, AHEAD = 9 }; /* the most of each; more tokens */
enum { CHUNK = 5, MOST_CHUNKS = 8, MOST_CALLS = 60 };                           /* pages added at once; how often */

static const uint8_t *at, *end; /* the bytes that are left */
static dcp_cache cache;
static dcp_sequence *sequence[SEQUENCES];
static dcp_page idle[CHUNK * MOST_CHUNKS];
static unsigned char *chunk[MOST_CHUNKS];
static size_t chunks;
static dcp_layer layer[MOST_LAYERS];
static dcp_model model;
static void *kept[128]; /* memory of the weights, and of a step's arrays */
static size_t n_kept;

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

static size_t draw(size_t below)
{
    if (at == end)
        return 0;
    return *at++ % below;
}

/* A number of any kind: small ones, and now and then an infinity, a NaN or a huge one. */
static float number(void)
{
    static const float odd[] = {0, 1, -1, 1e38f, -1e38f, 1e-40f, __builtin_inff(), __builtin_nanf("")};
    const size_t byte = draw(256);
    return byte < 8 ? odd[byte] : ((float)byte - 132) / 32;
}

static void *memory(size_t bytes)
{
    void *new = NULL;
    CHECK(posix_memalign(&new, 64, bytes + (bytes == 0)) == 0);
    return new;
}

/* n floats, the first `drawn` of them from the bytes. */
static float *floats(size_t n, size_t drawn)
{
    float *x = memory(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = i < drawn ? number() : (float)(i * 7 % 11) / 8 - 0.5f;
    kept[n_kept++] = x;
    return x;
}

static dcp_matrix matrix(size_t n_in, size_t n_out)
{
    dcp_matrix m;
    float *panels = memory(dcp_matrix_bytes(n_in, n_out)), *bias = floats(n_out, 1);
    kept[n_kept++] = panels;
    dcp_matrix_pack(&m, panels, floats(n_in * n_out, 1), n_in, n_out, bias);
    return m;
}

static int new_cache(void)
{
    const dcp_shape shape = {.layers = 1 + draw(MOST_LAYERS), .positions = 1 + draw(POSITIONS), .heads = 1 + draw(2),
                             .head_dim = 1 + draw(35), .rank = draw(4), .page_slots = draw(34), .threads = 1,
                             .max_bytes = draw(4) == 0 ? 1 << 17 : 0, .kv = (int)draw(4)};
    const dcp_policy policy = {.window = draw(6), .first = draw(3), .stride = draw(4), .heavy = draw(4),
                               .budget = shape.rank > 0 ? draw(4) : 0, .delay = draw(4), .by_attention = (int)draw(2),
                               .threshold = number()};
    return dcp_cache_init(&cache, &shape, &policy);
}

static void new_model(void)
{
    const size_t C = cache.channels, r = cache.shape.rank;
    for (size_t l = 0; l < cache.shape.layers; l++) {
        layer[l] = (dcp_layer){.ln_1_weight = floats(C, 1), .ln_1_bias = floats(C, 1), .ln_2_weight = floats(C, 1),
                               .ln_2_bias = floats(C, 1), .c_attn = matrix(C, 3 * C), .attn_c_proj = matrix(C, C),
                               .c_fc = matrix(C, 3), .mlp_c_proj = matrix(3, C), .scale = 0.5f, .beta = number()};
        if (r > 0)
            layer[l].interaction = matrix(C, 2 * r);
    }
    model = (dcp_model){.wte = matrix(C, VOCAB), .head = matrix(C, VOCAB), .wpe = floats(cache.shape.positions * C, 1),
                        .ln_f_weight = floats(C, 1), .ln_f_bias = floats(C, 1), .layer = layer, .epsilon = 1e-5f,
                        .activation = (int)draw(3), .propagate_in_depth = (int)draw(2)};
}

static int compare(const void *a, const void *b)
{
    const unsigned char *x = ((const dcp_page *)a)->area[0], *y = ((const dcp_page *)b)->area[0];
    return (x > y) - (x < y);
}

static int is_pinned(const dcp_sequence *one, size_t j)
{
    return one->pinned[j / 32] >> j % 32 & 1;
}

/* What the table of a layer says, against its counts and the pins. */
static void check_slots(const dcp_sequence *one, const dcp_slots *slots)
{
    const size_t n = cache.shape.page_slots, room = draw(cache.list_pages + 1);
    int32_t *table = memory(cache.list_pages * n * sizeof *table);
    char found[POSITIONS] = {0};
    size_t live = 0;
    CHECK(slots->pages <= cache.list_pages && slots->pages == dcp_pages_for(slots->live, n));
    CHECK(dcp_slot_table(table, room, &cache, slots) == slots->pages);
    CHECK(dcp_slot_table(table, slots->pages, &cache, slots) == slots->pages);
    for (size_t i = 0; i < slots->pages * n; i++) {
        if (table[i] < 0)
            continue;
        CHECK((size_t)table[i] < slots->seen && !found[table[i]]);
        found[table[i]] = 1;
        live++;
    }
    free(table);
    for (size_t j = 0; j < slots->seen; j++)
        CHECK(found[j] || !is_pinned(one, j));
    CHECK(live == slots->live && slots->live <= slots->seen && (live == 0 || found[slots->seen - 1]));
}

static void check_all(void)
{
    const dcp_pool *pool = &cache.pool;
    static dcp_page all[CHUNK * MOST_CHUNKS + SEQUENCES * MOST_LAYERS * POSITIONS];
    size_t n = 0, owned = 0;
    for (size_t s = 0; s < SEQUENCES; s++)
        for (size_t l = 0; sequence[s] != NULL && l < cache.shape.layers; l++) {
            const dcp_slots *slots = &sequence[s]->layer[l];
            memcpy(all + n, slots->page, slots->pages * sizeof *all);
            n += slots->pages;
            if (!sequence[s]->released)
                check_slots(sequence[s], slots);
        }
    qsort(all, n, sizeof *all, compare);
    for (size_t i = 0, last; i < n; i = last) {
        for (last = i; last < n && all[last].area[0] == all[i].area[0]; last++)
            continue;
        CHECK(*dcp_page_owners(all[i]) == last - i);
        all[owned++] = all[i];
    }
    CHECK(pool->pages == owned + pool->n_free && pool->pages + pool->n_spare == chunks * CHUNK);
    CHECK(pool->pages <= pool->most && owned <= pool->peak);
    n = owned + pool->n_spare + pool->n_free;
    memcpy(all + owned, pool->idle, (n - owned) * sizeof *all);
    qsort(all, n, sizeof *all, compare);
    for (size_t i = 1; i < n; i++)
        CHECK(all[i - 1].area[0] != all[i].area[0]);
}

/* A sum of all that a failed call must leave as it was. */
static uint64_t state(void)
{
    uint64_t sum = cache.pool.pages * 31 + cache.pool.n_free * 1009 + cache.pool.n_spare;
    for (size_t s = 0; s < SEQUENCES; s++) {
        for (size_t j = 0; sequence[s] != NULL && j < cache.shape.positions; j++)
            sum = sum * 31 + (size_t)is_pinned(sequence[s], j);
        for (size_t l = 0; sequence[s] != NULL && l < cache.shape.layers; l++) {
            const dcp_slots *slots = &sequence[s]->layer[l];
            sum = sum * 1000003 + slots->seen * 64 + slots->live;
            for (size_t p = 0; p < slots->pages; p++)
                sum = sum * 1000003 + slots->bitmap[p] + (uintptr_t)slots->page[p].area[0];
        }
    }
    return sum;
}

static void add_chunk(void)
{
    if (chunks == MOST_CHUNKS)
        return;
    const size_t bytes = CHUNK * dcp_page_bytes(&cache.pool);
    void *new = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(new != MAP_FAILED);
    chunk[chunks++] = new;
    CHECK(dcp_pool_add(&cache.pool, new, CHUNK) == DCP_OK);
}

/* Some different sequences, each with a count; returns how many, and all rows in *rows. */
static size_t batch_of(dcp_sequence **some, size_t *count, size_t least, size_t *rows)
{
    const size_t wanted = draw(16);
    size_t n = 0;
    *rows = 0;
    for (size_t s = 0; s < SEQUENCES; s++)
        if (sequence[s] != NULL && (wanted >> s & 1)) {
            some[n] = sequence[s];
            count[n] = least + draw(AHEAD);
            *rows += count[n++];
        }
    return n;
}

static void call_decode(void)
{
    dcp_sequence *some[SEQUENCES];
    size_t count[SEQUENCES], rows, batch = batch_of(some, count, draw(16) > 0, &rows), pairs[MOST_LAYERS];
    int64_t ids[SEQUENCES * (AHEAD + 1)];
    uint8_t pinned[SEQUENCES * (AHEAD + 1)];
    if (batch == 0)
        return;
    for (size_t i = 0; i < rows; i++)
        ids[i] = (int64_t)draw(64) == 63 ? VOCAB - (int64_t)draw(3) * 5 : (int64_t)(i % VOCAB);
    const size_t pins = draw(4); /* of four rows so many are pinned */
    for (size_t i = 0; i < rows; i++)
        pinned[i] = pins > 0 && draw(4) < pins;
    const size_t room = draw(8) > 0 ? SEQUENCES * (POSITIONS + AHEAD + 1) : draw(64);
    int32_t *dropped = memory(cache.shape.layers * room * 2 * sizeof *dropped);
    const dcp_feed feed = {.batch = batch, .sequence = some, .count = count, .ids = ids, .all = (int)draw(2),
                           .dropped = draw(2) ? dropped : NULL, .pairs = pairs, .room = room,
                           .pinned = pins > 0 ? pinned : NULL};
    const size_t needed = dcp_decode_bytes(&cache, &model, &feed), bytes = draw(16) > 0 ? needed : draw(needed + 1);
    const size_t wanted = feed.all ? rows : batch;
    float *logits = memory(wanted * dcp_stride(VOCAB) * sizeof *logits);
    void *workspace = memory(bytes);
    const uint64_t before = state();
    size_t live = 0, after = 0, gone = 0, seen = some[0]->layer[0].seen;
    for (size_t b = 0; b < batch; b++)
        for (size_t l = 0; l < cache.shape.layers; l++)
            live += some[b]->layer[l].live;
    const int error = dcp_decode(logits, &cache, &model, &feed, workspace, bytes);
    if (error == DCP_OK) {
        for (size_t l = 0; l < cache.shape.layers; l++) {
            gone += feed.dropped == NULL ? 0 : pairs[l];
            for (size_t b = 0; b < batch; b++)
                after += some[b]->layer[l].live;
        }
        CHECK(some[0]->layer[0].seen == seen + count[0]);
        CHECK(feed.dropped == NULL || after + gone == live + rows * cache.shape.layers);
    } else {
        CHECK(state() == before && (error == DCP_EINVAL || error == DCP_ENOROOM));
    }
    free(workspace);
    free(logits);
    free(dropped);
}

static void call_step(void)
{
    dcp_sequence *some[SEQUENCES];
    size_t count[SEQUENCES], start[SEQUENCES], rows, batch = batch_of(some, count, 0, &rows), room = rows, pairs = 0;
    const size_t l = draw(16) > 0 ? draw(cache.shape.layers) : draw(256), C = cache.channels, r = cache.shape.rank;
    if (batch == 0)
        return;
    for (size_t b = 0; b < batch; b++) {
        start[b] = some[b]->layer[l < cache.shape.layers ? l : 0].seen + (draw(16) == 15);
        room += start[b];
    }
    int32_t inherited[2 * 8], row = 0;
    for (size_t n = draw(8); rows > 0 && pairs < n && row < (int32_t)rows; pairs++) {
        inherited[2 * pairs] = row;
        inherited[2 * pairs + 1] = (int32_t)draw(POSITIONS + 3) - 1;
        row += (int32_t)draw(3);
    }
    const size_t kept_before = n_kept, stride = C + draw(3), int_stride = r + draw(3);
    const dcp_input input = {
        .layer = l, .batch = batch, .sequence = some, .start = start, .count = count, .q = floats(rows * stride, 8),
        .k = floats(rows * stride, 8), .v = floats(rows * stride, 8), .q_int = floats(rows * int_stride, 8),
        .k_int = floats(rows * int_stride, 8), .stride = stride, .int_stride = int_stride, .scale = number(),
        .beta = number(), .inherited = inherited, .pairs = pairs};
    const size_t needed = dcp_step_bytes(&cache, count, batch), bytes = draw(16) > 0 ? needed : draw(needed + 1);
    float *out = memory(rows * dcp_stride(C) * sizeof *out);
    int32_t *dropped = memory(2 * room * sizeof *dropped);
    void *workspace = memory(bytes);
    const uint64_t before = state();
    const ptrdiff_t n = dcp_step(out, dropped, &cache, &input, workspace, bytes);
    CHECK(n >= 0 ? (size_t)n <= room : state() == before && (n == DCP_EINVAL || n == DCP_ENOROOM));
    for (ptrdiff_t i = 1; i < n; i++)
        CHECK(dropped[2 * i] > dropped[2 * i - 2] ||
              (dropped[2 * i] == dropped[2 * i - 2] && dropped[2 * i + 1] > dropped[2 * i - 1]));
    free(workspace);
    free(dropped);
    free(out);
    while (n_kept > kept_before)
        free(kept[--n_kept]);
}

static void call_fork(void)
{
    dcp_sequence *parent = sequence[draw(SEQUENCES)];
    const size_t s = draw(SEQUENCES);
    if (parent == NULL || sequence[s] != NULL)
        return;
    sequence[s] = dcp_sequence_init(&cache, memory(dcp_sequence_bytes(&cache)));
    const uint64_t before = state();
    const int error = dcp_sequence_fork(&cache, sequence[s], parent);
    if (error == DCP_OK) {
        for (size_t l = 0; l < cache.shape.layers; l++)
            CHECK(sequence[s]->pins == parent->pins && sequence[s]->layer[l].live == parent->layer[l].live &&
                  sequence[s]->layer[l].seen == parent->layer[l].seen);
    } else {
        CHECK(state() == before && error == DCP_EINVAL && parent->released);
    }
}

/* One sequence becomes what another is: not only one that it was forked into. */
static void call_adopt(void)
{
    dcp_sequence *one = sequence[draw(SEQUENCES)], *draft = sequence[draw(SEQUENCES)];
    if (one == NULL || draft == NULL || one == draft)
        return;
    const size_t count = draw(2) ? draw(AHEAD) : draft->layer[0].seen - one->layer[0].seen;
    const uint64_t before = state();
    if (dcp_sequence_adopt(&cache, &one, &draft, &count, 1) == DCP_OK)
        CHECK(draft->released && !one->released);
    else
        CHECK(state() == before);
}

static void call_new_or_forget(void)
{
    const size_t s = draw(SEQUENCES);
    if (sequence[s] == NULL) {
        sequence[s] = dcp_sequence_init(&cache, memory(dcp_sequence_bytes(&cache)));
    } else if (sequence[s]->released) {
        free(sequence[s]);
        sequence[s] = NULL;
    }
}

static void call(void)
{
    const size_t kind = draw(17), s = draw(SEQUENCES), n_free = cache.pool.n_free;
    const uint64_t before = state();
    if (kind < 6)
        call_decode();
    else if (kind < 9)
        call_step();
    else if (kind < 10)
        call_fork();
    else if (kind < 12)
        call_new_or_forget();
    else if (kind < 13 && sequence[s] != NULL)
        dcp_sequence_release(&cache, sequence[s]);
    else if (kind < 14)
        dcp_pool_trim(&cache.pool);
    else if (kind < 15)
        add_chunk();
    else if (kind < 16)
        call_adopt();
    else
        CHECK(dcp_pool_grow(&cache.pool, n_free + s) == DCP_OK || state() == before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    at = data;
    end = data + size;
    if (new_cache() != DCP_OK)
        return 0;
    CHECK(dcp_pool_list(&cache.pool, idle, CHUNK * MOST_CHUNKS) == DCP_OK);
    new_model();
    add_chunk();
    dcp_pool_grow(&cache.pool, CHUNK);
    sequence[0] = dcp_sequence_init(&cache, memory(dcp_sequence_bytes(&cache)));
    for (size_t n = 0; n < MOST_CALLS && at < end; n++) {
        call();
        check_all();
    }
    for (size_t s = 0; s < SEQUENCES; s++) {
        if (sequence[s] != NULL)
            dcp_sequence_release(&cache, sequence[s]);
        free(sequence[s]);
        sequence[s] = NULL;
    }
    CHECK(cache.pool.n_free == cache.pool.pages);
    while (chunks > 0)
        munmap(chunk[--chunks], CHUNK * dcp_page_bytes(&cache.pool));
    while (n_kept > 0)
        free(kept[--n_kept]);
    return 0;
}
