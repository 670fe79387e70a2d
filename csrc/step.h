/* step.h - what the passes of a step share. */

#include "common.h"

/* The rows of one sequence that a round takes. */
typedef struct {
    const dcp_input *input;
    dcp_cache *cache;
    dcp_slots *slots;
    size_t first, rows; /* of the input: the span's first row, and how many it has */
    size_t *slot_of;    /* [rows]: where each row's own token goes */
    uint32_t *live;     /* [rows, list_pages]: the bitmaps in force for each row */
    int32_t *dropped;   /* [n_dropped, 2]: the sequence's own pairs (row, position) */
    size_t n_dropped;
    size_t n_inherited; /* the input's pairs that earlier rows have inherited */
} span;

/* Row `row` of a field of page p, a float a slot. */
INLINE float *lanes(const span *s, size_t p, int field, size_t row)
{
    return (float *)(void *)(s->slots->page[p].area[DCP_REST] + s->cache->field[field]) + row * DCP_LANES;
}

/* judge.c: works out which slots are live for each row of the span, and gives the rows' own tokens theirs. Scratch: a
 * tile a page. */
void judge(span *s, dcp_tile *scores);

/* Some heads of a span. Scratch: for each head of the model list_pages tiles of weights, and v_panels tiles of sums. */
typedef struct {
    const span *span;
    size_t first, end;
    dcp_tile *w, *sum;
} head_task;

/* attend.c: stores the span's keys and values of the task's heads, then attends for each of its rows. */
void attend(float *out, const head_task *task);
