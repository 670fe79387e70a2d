/* step.h - what the passes of a step share. */

#include "common.h"

/* The rows of one sequence that a round takes. */
typedef struct {
    const dcp_input *input;
    dcp_cache *cache;
    dcp_slots *slots;
    const uint32_t *pinned; /* the sequence's, by position; NULL where none of its tokens is pinned */
    size_t first, rows; /* of the input: the span's first row, and how many rows it has */
    dcp_page *left;     /* [n_left], with room for 2 list_pages: pages that it owns no longer, until the round ends */
    size_t n_left;
    size_t *slot_of;    /* [rows]: the slot of each row's own token */
    uint32_t *live;     /* [rows, list_pages]: the live slots while each row attends */
    int32_t *dropped;   /* [n_dropped, 2]: the sequence's own pairs (row, position) */
    size_t n_dropped;
    size_t by[DCP_REASONS]; /* how many of them by each reason */
    size_t n_inherited; /* the input's pairs that earlier rows have inherited */
} span;

/* Row `row` of a field of page p, a float a slot. */
INLINE float *field_row(const span *s, size_t p, int field, size_t row)
{
    return (float *)(void *)(s->slots->page[p].area[DCP_REST] + s->cache->field[field]) + row * DCP_LANES;
}

/* cache.c: the positions of a page's tokens [32], a slot each. */
int32_t *positions_of(const dcp_cache *cache, dcp_page page);

/* cache.c: makes page p of the span writable: one that has other owners is copied first, and left. */
void own_page(span *s, size_t p);

/* cache.c: makes the slots of bitmap the live ones. Then, while the list has a page more than its tokens need, moves
 * the last page's tokens into free slots of the others and leaves the page. */
void compact(span *s, const uint32_t *bitmap);

/* cache.c: takes the span's ownership from the pages that it left. One thread at a time, and none takes pages then. */
void give_up_left(span *s);

/* judge.c: for each row of the span in order, drops what its own rules drop, and gives its token a slot: sets slot_of
 * and live, appends to dropped. Scratch: a tile a page. */
void judge(span *s, tile *scores);

/* Some heads of a span. Scratch: for each head of the model list_pages tiles of weights, and v_panels tiles of sums. */
typedef struct {
    const span *span;
    size_t first, end;
    tile *w, *sum;
} head_task;

/* attend.c: stores the span's keys and values of the task's heads, then attends for each of its rows. */
void attend(float *out, const head_task *task);
