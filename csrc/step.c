/* step.c - one layer of a step, round by round: judge, store and attend, compact. */

#include "step.h"

/* The workspace: tiles for each thread; `left` of all sequences; a span each; slot_of and live of all their rows. */
static size_t thread_tiles(const dcp_cache *cache)
{
    return cache->shape.heads * (cache->list_pages + cache->v_panels);
}

/* The bytes of the tiles of all threads. */
static size_t tiles_bytes(const dcp_cache *cache)
{
    return cache->shape.threads * thread_tiles(cache) * sizeof(tile);
}

size_t dcp_step_bytes(const dcp_cache *cache, const size_t *count, size_t batch)
{
    size_t rows = 0;
    for (size_t b = 0; b < batch; b++)
        rows += count[b] < DCP_ROUND_ROWS ? count[b] : DCP_ROUND_ROWS;
    return tiles_bytes(cache) + batch * (2 * cache->list_pages * sizeof(dcp_page) + sizeof(span)) +
           rows * (sizeof(size_t) + cache->list_pages * sizeof(uint32_t));
}

/* Returns DCP_OK, or the error that dcp_step is to return. */
static int check_input(const dcp_cache *cache, const dcp_input *input, size_t bytes)
{
    const size_t l = input->layer;
    if (l >= cache->shape.layers)
        return DCP_EINVAL;
    for (size_t b = 0; b < input->batch; b++)
        if (input->sequence[b]->released || input->start[b] != input->sequence[b]->layer[l].seen ||
            input->count[b] > cache->shape.positions - input->start[b])
            return DCP_EINVAL;
    if (dcp_more_pages(cache, input->sequence, input->count, input->batch, l, l + 1,
                       may_drop(cache) || input->pairs > 0) > cache->pool.n_free ||
        dcp_step_bytes(cache, input->count, input->batch) > bytes)
        return DCP_ENOROOM;
    return DCP_OK;
}

/* Marks the pinned tokens among the rows, each at its position in its sequence. */
static void pin_rows(const dcp_input *input)
{
    size_t row = 0;
    for (size_t b = 0; b < input->batch; b++)
        for (size_t j = input->start[b]; j < input->start[b] + input->count[b]; j++) {
            if (input->pinned[row] != 0) {
                input->sequence[b]->pinned[j / 32] |= UINT32_C(1) << j % 32;
                input->sequence[b]->pins = 1;
            }
            row++;
        }
}

/* Fills a span a sequence; none of its rows is done yet. */
static void start_spans(span *spans, dcp_page *left, dcp_cache *cache, const dcp_input *input, int32_t *dropped)
{
    size_t row = 0, inherited = 0;
    for (size_t b = 0; b < input->batch; b++) {
        while (inherited < input->pairs && input->inherited[2 * inherited] < (int32_t)row)
            inherited++;
        const dcp_sequence *sequence = input->sequence[b];
        spans[b] = (span){.input = input, .cache = cache, .slots = &sequence->layer[input->layer],
                          .pinned = sequence->pins ? sequence->pinned : NULL, .first = row,
                          .left = left + 2 * b * cache->list_pages, .dropped = dropped, .n_inherited = inherited};
        row += input->count[b];
        dropped += 2 * (input->start[b] + input->count[b]);
    }
}

/* Moves each span on to its next rows, at most `most`. Returns about how many multiplications they take; 0 if no span
 * has any rows left. */
static size_t next_rows(span *spans, const dcp_input *input, size_t done, size_t most)
{
    size_t *slot_of = (size_t *)(spans + input->batch), rows = 0, work = 0;
    for (size_t b = 0; b < input->batch; b++) {
        const size_t left = input->count[b] > done ? input->count[b] - done : 0;
        spans[b].first += spans[b].rows;
        spans[b].rows = left < most ? left : most;
        spans[b].slot_of = slot_of + rows;
        rows += spans[b].rows;
        work += spans[b].rows * (spans[b].slots->live + spans[b].rows) * spans[b].cache->channels * 2;
    }
    uint32_t *live = (uint32_t *)(slot_of + rows);
    for (size_t b = 0; b < input->batch; b++) {
        spans[b].live = live;
        live += spans[b].rows * spans[b].cache->list_pages;
    }
    return work;
}

/* Into how many tasks the heads of a sequence are split. One, unless there are too few sequences to go round. For rows
 * of a prompt a task is one head: its keys and values then stay in the nearest cache from tile to tile. */
static size_t tasks_of_a_sequence(const span *spans, size_t batch, size_t heads, size_t threads)
{
    size_t tasks = 1;
    for (size_t b = 0; b < batch; b++)
        if (spans[b].rows > 1)
            return heads;
    while (tasks < heads && batch * tasks < 4 * threads && batch * tasks % threads != 0)
        tasks++;
    return tasks;
}

/* Judges, stores, attends and compacts the rows that the spans hold now. */
static void do_round(float *out, span *spans, size_t batch, tile *tiles, size_t threads)
{
    dcp_cache *cache = spans->cache;
    const size_t H = cache->shape.heads, tasks = tasks_of_a_sequence(spans, batch, H, threads);
#pragma omp parallel num_threads((int)threads)
    {
        tile *w = tiles + (size_t)omp_get_thread_num() * thread_tiles(cache);
#pragma omp for schedule(dynamic)
        for (size_t b = 0; b < batch; b++)
            if (spans[b].rows > 0)
                judge(&spans[b], w);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < batch * tasks; i++)
            if (spans[i / tasks].rows > 0)
                attend(out, &(head_task){&spans[i / tasks], i % tasks * H / tasks, (i % tasks + 1) * H / tasks, w,
                                         w + H * cache->list_pages});
#pragma omp for schedule(dynamic)
        for (size_t b = 0; b < batch; b++)
            if (spans[b].rows > 0) /* the slots live after the last row are those that the layer keeps */
                compact(&spans[b], spans[b].live + (spans[b].rows - 1) * cache->list_pages);
    }
    note_peak(&cache->pool);
    for (size_t b = 0; b < batch; b++)
        give_up_left(&spans[b]);
}

/* Moves the pairs of all sequences up to each other. Returns their number. */
static size_t join_dropped(int32_t *dropped, const span *spans, size_t batch)
{
    size_t n = 0;
    for (size_t b = 0; b < batch; b++) {
        memmove(dropped + 2 * n, spans[b].dropped, 2 * spans[b].n_dropped * sizeof *dropped);
        n += spans[b].n_dropped;
    }
    return n;
}

ptrdiff_t dcp_step(float *out, int32_t *dropped, dcp_cache *cache, const dcp_input *input, void *workspace,
                   size_t bytes)
{
    const int error = check_input(cache, input, bytes);
    if (error != DCP_OK)
        return error;
    const size_t most = cache->policy.by_attention ? 1 : DCP_ROUND_ROWS; /* a row's attention judges the next one */
    dcp_page *left = (dcp_page *)(void *)((unsigned char *)workspace + tiles_bytes(cache));
    span *spans = (span *)(left + 2 * input->batch * cache->list_pages);
    if (input->pinned != NULL)
        pin_rows(input);
    start_spans(spans, left, cache, input, dropped);
    size_t done = 0, work = next_rows(spans, input, done, most);
    while (work > 0) {
        do_round(out, spans, input->batch, workspace, threads_for(work, cache->shape.threads));
        done += most;
        work = next_rows(spans, input, done, most);
    }
    if (cache->dropped != NULL)
        for (size_t b = 0; b < input->batch; b++)
            for (size_t k = 0; k < DCP_REASONS; k++)
                cache->dropped[input->layer * DCP_REASONS + k] += spans[b].by[k];
    return (ptrdiff_t)join_dropped(dropped, spans, input->batch);
}
