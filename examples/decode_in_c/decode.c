/* decode.c - continues a prompt greedily, from C alone: csrc/dcp.h is the manual of what it calls.
 *
 *     python examples/decode_in_c/save.py tiny /tmp/tiny.bin
 *     cc -std=gnu11 -O3 -fopenmp -Icsrc examples/decode_in_c/decode.c csrc/[a-z]*.c -lm -o /tmp/decode
 *     /tmp/decode /tmp/tiny.bin 5 515 659 419       the model, how many new tokens, the prompt's ids; prints new ids */

#include <err.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "kernels.h"
#include "dcp.h"

enum { LAYERS, POSITIONS, HEADS, HEAD_DIM, RANK, INNER, VOCABULARY, ACTIVATION, IN_DEPTH, DELAY, SIZES };

static void need(int good, const char *what)
{
    if (!good) errx(1, "%s", what);
}

/* Zeros from the system, aligned to its pages. */
static void *memory(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(at != MAP_FAILED, "out of memory");
    return at;
}

/* The next n floats of the file. */
static float *floats(FILE *file, size_t n)
{
    float *x = malloc(n * sizeof *x);
    need(x != NULL && fread(x, sizeof *x, n, file) == n, "the model's file is too short");
    return x;
}

/* The file's next matrix, packed, and the bias after it, if there is one. */
static dcp_matrix matrix(FILE *file, size_t n_in, size_t n_out, int biased)
{
    dcp_matrix result;
    float *w = floats(file, n_in * n_out), *bias = biased ? floats(file, n_out) : NULL;
    dcp_matrix_pack(&result, memory(dcp_matrix_bytes(n_in, n_out)), w, n_in, n_out, bias);
    free(w);
    return result;
}

/* The model; its tensors come in the order in which save.py writes them. */
static dcp_model read_model(FILE *file, const uint64_t *size)
{
    const size_t C = size[HEADS] * size[HEAD_DIM], V = size[VOCABULARY];
    dcp_layer *layer = memory(size[LAYERS] * sizeof *layer);
    dcp_model model = {.layer = layer, .activation = (int)size[ACTIVATION], .propagate_in_depth = (int)size[IN_DEPTH]};
    model.epsilon = *floats(file, 1);
    model.wte = matrix(file, C, V, 0);
    model.head = matrix(file, C, V, 0);
    model.wpe = floats(file, size[POSITIONS] * C);
    model.ln_f_weight = floats(file, C);
    model.ln_f_bias = floats(file, C);
    for (dcp_layer *p = layer; p < layer + size[LAYERS]; p++) {
        p->scale = *floats(file, 1);
        p->beta = *floats(file, 1);
        p->ln_1_weight = floats(file, C);
        p->ln_1_bias = floats(file, C);
        p->ln_2_weight = floats(file, C);
        p->ln_2_bias = floats(file, C);
        p->c_attn = matrix(file, C, 3 * C, 1);
        p->attn_c_proj = matrix(file, C, C, 1);
        p->c_fc = matrix(file, C, size[INNER], 1);
        p->mlp_c_proj = matrix(file, size[INNER], C, 1);
        if (size[RANK] > 0)
            p->interaction = matrix(file, C, 2 * size[RANK], 0);
    }
    return model;
}

/* Appends ids to the sequence. Returns the id that the model finds most likely after them. */
static int64_t feed(dcp_cache *cache, const dcp_model *model, dcp_sequence *sequence, const int64_t *ids, size_t count)
{
    const dcp_feed next = {.batch = 1, .sequence = &sequence, .count = &count, .ids = ids};
    size_t best = 0, bytes = dcp_decode_bytes(cache, model, &next), V = model->head.n_out;
    float *logits = memory(V * sizeof *logits);
    void *workspace = memory(bytes);
    dcp_pool_grow(&cache->pool, dcp_more_pages(cache, &sequence, &count, 1, 0, cache->shape.layers, 1));
    need(dcp_decode(logits, cache, model, &next, workspace, bytes) == DCP_OK, "no such id, or too many tokens");
    for (size_t i = 1; i < V; i++)
        best = logits[i] > logits[best] ? i : best;
    munmap(logits, V * sizeof *logits);
    munmap(workspace, bytes);
    return (int64_t)best;
}

int main(int argc, char **argv)
{
    need(argc > 3, "give a model's file, how many new tokens, and the ids of a prompt");
    uint64_t size[SIZES];
    FILE *file = fopen(argv[1], "rb");
    need(file != NULL && fread(size, sizeof *size, SIZES, file) == SIZES, "the model's file cannot be read");
    const dcp_model model = read_model(file, size);
    const dcp_shape shape = {.layers = size[LAYERS], .positions = size[POSITIONS], .rank = size[RANK],
        .heads = size[HEADS], .head_dim = size[HEAD_DIM], .page_slots = 32, .threads = dcp_threads(0)};
    dcp_cache cache;
    need(dcp_cache_init(&cache, &shape, &(dcp_policy){.delay = size[DELAY]}) == DCP_OK, "the model's sizes are wrong");
    const size_t pages = shape.layers * cache.list_pages; /* enough; the system gives memory to those in use */
    dcp_pool_list(&cache.pool, memory(pages * sizeof(dcp_page)), pages);
    dcp_pool_add(&cache.pool, memory(pages * dcp_page_bytes(&cache.pool)), pages);
    dcp_sequence *sequence = dcp_sequence_init(&cache, memory(dcp_sequence_bytes(&cache)));
    int64_t *ids = memory((size_t)argc * sizeof *ids); /* the prompt; then, at its start, each new id */
    size_t count = (size_t)argc - 3;
    for (size_t i = 0; i < count; i++)
        ids[i] = strtoll(argv[i + 3], NULL, 10);
    for (long left = strtol(argv[2], NULL, 10); left > 0; left--) {
        ids[0] = feed(&cache, &model, sequence, ids, count);
        count = 1;
        printf("%lld\n", (long long)ids[0]);
    }
    return 0;
}
