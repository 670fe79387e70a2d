/* decode.c - tokens in, logits out: GPT-2's layers from top to bottom, with a pruned cache. The twin, in C, of
 * dcp_ref/model.py's forward at alpha = inf; dcp_ref/runtime/decoder.py is the same walk in Python. */

#include "common.h"

/* The working memory of one call; rows are dcp_stride apart. All layers use the same memory. */
typedef struct {
    float *x;       /* [rows, C]: the residual stream */
    float *n;       /* [rows, C]: x after a layer norm */
    float *qkv;     /* [rows, 3 C] */
    float *qk_int;  /* [rows, 2 r]: interaction queries and keys */
    float *y;       /* [rows, C]: the result of attention */
    float *hidden;  /* [rows, inner] */
    int64_t *position;      /* [rows] */
    size_t *start;          /* [batch]: each sequence's first new position */
    int32_t *dropped;       /* pairs (row, position) that this layer drops */
    int32_t *inherited;     /* the pairs that the layer before dropped */
    unsigned char *step;    /* the workspace of dcp_step */
} buffers;

/* The next `bytes` of memory, at a multiple of 64; adds them to *used. Returns NULL if memory is NULL: only
 * counting. */
static void *take(unsigned char *memory, size_t *used, size_t bytes)
{
    void *at = memory == NULL ? NULL : memory + *used;
    *used += (bytes + 63) / 64 * 64;
    return at;
}

/* How many tokens the sequences will have seen after the feed. No layer can drop more. */
static size_t tokens_after(const dcp_feed *feed)
{
    size_t tokens = 0;
    for (size_t i = 0; i < feed->batch; i++)
        tokens += feed->sequence[i]->layer[0].seen + feed->count[i];
    return tokens;
}

/* Lays the buffers out in memory, or counts only, if memory is NULL. Returns the bytes before the workspace of
 * dcp_step. */
static size_t lay_out(buffers *b, unsigned char *memory, const dcp_cache *cache, const dcp_model *model,
                      const dcp_feed *feed)
{
    const size_t C = cache->channels, row = sizeof(float);
    const size_t tokens = tokens_after(feed);
    size_t rows = 0, used = 0;
    for (size_t i = 0; i < feed->batch; i++)
        rows += feed->count[i];
    b->x = take(memory, &used, rows * dcp_stride(C) * row);
    b->n = take(memory, &used, rows * dcp_stride(C) * row);
    b->qkv = take(memory, &used, rows * dcp_stride(3 * C) * row);
    b->qk_int = take(memory, &used, rows * dcp_stride(2 * cache->shape.rank) * row);
    b->y = take(memory, &used, rows * dcp_stride(C) * row);
    b->hidden = take(memory, &used, rows * dcp_stride(model->layer->c_fc.n_out) * row);
    b->position = take(memory, &used, rows * sizeof(int64_t));
    b->start = take(memory, &used, feed->batch * sizeof(size_t));
    b->dropped = take(memory, &used, tokens * 2 * sizeof(int32_t));
    b->inherited = take(memory, &used, tokens * 2 * sizeof(int32_t));
    b->step = take(memory, &used, 0);
    return used;
}

size_t dcp_decode_bytes(const dcp_cache *cache, const dcp_model *model, const dcp_feed *feed)
{
    buffers b;
    return lay_out(&b, NULL, cache, model, feed) + dcp_step_bytes(cache, feed->count, feed->batch);
}

/* Returns DCP_OK, or the error that dcp_decode is to return. */
static int check_feed(const dcp_cache *cache, const dcp_model *model, const dcp_feed *feed, size_t bytes)
{
    size_t rows = 0;
    for (size_t b = 0; b < feed->batch; b++) {
        const dcp_sequence *sequence = feed->sequence[b];
        if (sequence->released || feed->count[b] == 0 ||
            feed->count[b] > cache->shape.positions - sequence->layer[0].seen)
            return DCP_EINVAL;
        for (size_t l = 1; l < cache->shape.layers; l++) /* dcp_step may have been called for one layer only */
            if (sequence->layer[l].seen != sequence->layer[0].seen)
                return DCP_EINVAL;
        rows += feed->count[b];
    }
    for (size_t i = 0; i < rows; i++)
        if (feed->ids[i] < 0 || (size_t)feed->ids[i] >= model->wte.n_out)
            return DCP_EINVAL;
    if (dcp_more_pages(cache, feed->sequence, feed->count, feed->batch, 0, cache->shape.layers, may_drop(cache)) >
            cache->pool.n_free ||
        dcp_decode_bytes(cache, model, feed) > bytes || (feed->dropped != NULL && feed->room < tokens_after(feed)))
        return DCP_ENOROOM;
    return DCP_OK;
}

/* Sets where each sequence starts, and the position of each row. Returns the number of rows. */
static size_t number_rows(buffers *b, const dcp_feed *feed)
{
    size_t row = 0;
    for (size_t i = 0; i < feed->batch; i++) {
        b->start[i] = feed->sequence[i]->layer[0].seen;
        for (size_t n = 0; n < feed->count[i]; n++)
            b->position[row + n] = (int64_t)(b->start[i] + n);
        row += feed->count[i];
    }
    return row;
}

/* Moves the last row of sequence i, in x and in y, to row i. Returns the number of rows that are left. */
static size_t keep_last_rows(buffers *b, const dcp_feed *feed, size_t channels)
{
    const size_t stride = dcp_stride(channels);
    size_t end = 0;
    for (size_t i = 0; i < feed->batch; i++) {
        end += feed->count[i];
        memmove(b->x + i * stride, b->x + (end - 1) * stride, channels * sizeof(float));
        memmove(b->y + i * stride, b->y + (end - 1) * stride, channels * sizeof(float));
    }
    return feed->batch;
}

/* Attention of layer l, without its last projection: n -> y. *pairs: how many the layer before dropped, then how many
 * this one did; `inherited` holds these then. */
static void attention(buffers *b, dcp_cache *cache, const dcp_model *model, size_t l, const dcp_feed *feed, size_t rows,
                      size_t *pairs)
{
    const dcp_layer *p = &model->layer[l];
    const size_t C = cache->channels, r = cache->shape.rank, threads = cache->shape.threads;
    dcp_linear(b->qkv, b->n, NULL, &p->c_attn, rows, threads);
    if (r > 0)
        dcp_linear(b->qk_int, b->n, NULL, &p->interaction, rows, threads);
    const dcp_input input = {
        .layer = l, .batch = feed->batch, .sequence = feed->sequence, .start = b->start, .count = feed->count,
        .q = b->qkv, .k = b->qkv + C, .v = b->qkv + 2 * C, .q_int = b->qk_int, .k_int = b->qk_int + r,
        .stride = dcp_stride(3 * C), .int_stride = dcp_stride(2 * r), .scale = p->scale, .beta = p->beta,
        .inherited = b->inherited, .pairs = model->propagate_in_depth ? *pairs : 0, .pinned = feed->pinned};
    const size_t bytes = dcp_step_bytes(cache, feed->count, feed->batch);
    *pairs = (size_t)dcp_step(b->y, b->dropped, cache, &input, b->step, bytes);
    if (feed->dropped != NULL) {
        memcpy(feed->dropped + 2 * l * feed->room, b->dropped, 2 * *pairs * sizeof(int32_t));
        feed->pairs[l] = *pairs;
    }
    int32_t *inherited = b->inherited;
    b->inherited = b->dropped;
    b->dropped = inherited;
}

/* The mlp of one layer: x -> x + mlp(ln_2(x)). */
static void mlp(buffers *b, const dcp_model *model, const dcp_layer *p, size_t rows, size_t threads)
{
    const size_t C = p->c_fc.n_in, inner = p->c_fc.n_out;
    dcp_layer_norm(b->n, b->x, p->ln_2_weight, p->ln_2_bias, model->epsilon, rows, C, threads);
    dcp_linear(b->hidden, b->n, NULL, &p->c_fc, rows, threads);
    dcp_activation(b->hidden, b->hidden, model->activation, (rows - 1) * dcp_stride(inner) + inner, threads);
    dcp_linear(b->x, b->hidden, b->x, &p->mlp_c_proj, rows, threads);
}

int dcp_decode(float *logits, dcp_cache *cache, const dcp_model *model, const dcp_feed *feed, void *workspace,
               size_t bytes)
{
    const int error = check_feed(cache, model, feed, bytes);
    if (error != DCP_OK)
        return error;
    buffers b;
    lay_out(&b, workspace, cache, model, feed);
    const size_t C = cache->channels, L = cache->shape.layers, threads = cache->shape.threads;
    size_t rows = number_rows(&b, feed), pairs = 0;
    dcp_embedding(b.x, feed->ids, b.position, &model->wte, model->wpe, rows, threads);
    for (size_t l = 0; l < L; l++) {
        const dcp_layer *p = &model->layer[l];
        dcp_layer_norm(b.n, b.x, p->ln_1_weight, p->ln_1_bias, model->epsilon, rows, C, threads);
        attention(&b, cache, model, l, feed, rows, &pairs);
        if (l + 1 == L && !feed->all) /* only wanted rows go on; the others were needed to fill the cache */
            rows = keep_last_rows(&b, feed, C);
        dcp_linear(b.x, b.y, b.x, &p->attn_c_proj, rows, threads);
        mlp(&b, model, p, rows, threads);
    }
    dcp_layer_norm(b.x, b.x, model->ln_f_weight, model->ln_f_bias, model->epsilon, rows, C, threads);
    dcp_linear(logits, b.x, NULL, &model->head, rows, threads);
    return DCP_OK;
}
