/* dcp.h - GPT-2 with a pruned key-value cache: the manual of the C API. Include <stddef.h>, <stdint.h> and "kernels.h"
 * before it; cffi parses it too, so it has declarations only. examples/decode_in_c/ is a program that uses it. Read on
 * in slots.c, sequence.c, cache.c, judge.c, attend.c, step.c, decode.c.
 *
 * A token takes one slot in each layer of its sequence. Slots come in pages of `page_slots`. Each (layer, sequence)
 * owns the pages that its live tokens need, and takes them from one pool. The picture shows the pages of one (layer,
 * sequence), with page_slots = 4: a number is the position of the token in a live slot, a dot is a free slot.
 *
 *                    page 0          page 1          page 2
 *   insert 0..8      0  1  2  3      4  5  6  7      8  .  .  .     a new token takes the lowest free slot
 *   drop 1, 2, 6     0  .  .  3      4  5  .  7      8  .  .  .     a drop clears one bit: nothing moves
 *   reuse: insert 9  0  9  .  3      4  5  .  7      8  .  .  .     the lowest free slot, again
 *   compact          0  9  8  3      4  5  .  7                     7 tokens need 2 pages: the last page's tokens
 *                                                                   move into holes, the page goes to the pool
 *
 * So after every step a (layer, sequence) owns fewer slots than its live tokens + one page. Attention walks the pages
 * in order; the order of positions does not matter to a softmax.
 *
 * A fork has its parent's pages: each page counts its owners. A bitmap belongs to one sequence alone, so a drop does not
 * touch a page. A step copies a page that has other owners before it writes there, into the same slots: so the numbers
 * of a sequence do not depend on who shares its pages.
 *
 * No function allocates, prints or exits: all memory is the caller's. Only one thread at a time may use a cache. A call
 * that returns an error has changed nothing. Results do not depend on the number of threads. */

enum {
    DCP_OK = 0,
    DCP_EINVAL = -1, /* an argument is out of its range, or a sequence was released */
    DCP_ENOROOM = -2 /* too few free pages, or too small a workspace */
};
enum { DCP_FLOAT32, DCP_FLOAT16, DCP_INT8 }; /* how numbers are stored: in 4 >> type bytes, int8 with a scale */
enum {
    DCP_LANES = 32,      /* columns of a panel of weights or keys; the most slots of a page */
    DCP_ROUND_ROWS = 48, /* the most rows of a prompt in one round of a step; what they drop is removed after it */
    DCP_TILE_ROWS = 12   /* the most rows that attend together */
};

/* ---- slots.c: pages and live bitmaps. Integers and addresses only. ---- */

/* A page has three areas of memory. Pages that are added together have their keys side by side, then all else, then
 * values: so keys of neighbouring pages are read in one go. The first word of `rest` is the number of owners. */
enum { DCP_KEYS, DCP_REST, DCP_VALUES, DCP_AREAS };
typedef struct { unsigned char *area[DCP_AREAS]; } dcp_page;

/* A page is owned (by one sequence or several), free (backed by memory, unowned) or spare (address space only). */
typedef struct {
    size_t page_slots;            /* 1..32, a bit each in a uint32_t */
    size_t area_bytes[DCP_AREAS]; /* multiples of the system's page size */
    size_t pages, n_free;         /* owned + free pages; free pages */
    size_t peak;                  /* the most pages that were owned at once so far */
    size_t n_spare, most;         /* spare pages; the most that `pages` may become */
    size_t room;                  /* length of idle: enough for all pages, so that giving one back cannot fail */
    dcp_page *idle;               /* first the spare pages, then the free ones */
} dcp_pool;

/* The live tokens of one sequence in one layer: slot s is bit s % page_slots of bitmap[s / page_slots]. */
typedef struct {
    size_t seen, live, pages; /* tokens inserted so far (the next token's position); live tokens; pages owned */
    uint32_t *bitmap;         /* [pages], with room for list_pages */
    dcp_page *page;           /* [pages], with room for list_pages */
} dcp_slots;

size_t dcp_pages_for(size_t tokens, size_t page_slots); /* the pages that this number of tokens needs */
size_t dcp_page_bytes(const dcp_pool *pool);            /* the bytes of a page's areas together */

/* Moves the list of idle pages to an array of `room` entries, which must stay until the pool is gone or its list is
 * moved again. Returns DCP_OK, or DCP_ENOROOM if `room` is less than the number of pages. */
int dcp_pool_list(dcp_pool *pool, dcp_page *idle, size_t room);

/* Adds spare pages in `memory`: pages * dcp_page_bytes, aligned to the system's pages, fresh from mmap, outliving the
 * pool. Returns DCP_OK, or DCP_ENOROOM if the list has no room for them. */
int dcp_pool_add(dcp_pool *pool, unsigned char *memory, size_t pages);

/* Turns spare pages into free ones until there are n_free. Returns DCP_OK, or DCP_ENOROOM if there are too few spare
 * pages or `pages` would exceed `most`. */
int dcp_pool_grow(dcp_pool *pool, size_t n_free);

void dcp_pool_trim(dcp_pool *pool); /* turns free pages into spare ones, and gives their memory back to the system */

/* Takes a free page, for one owner: there must be one. Threads may do so at the same time, and nothing else with the
 * pool meanwhile. */
dcp_page dcp_page_take(dcp_pool *pool);
void dcp_page_free(dcp_pool *pool, dcp_page page); /* takes one owner from the page, which is free after the last */
uint32_t *dcp_page_owners(dcp_page page);          /* how many owners the page has */

/* Marks the lowest free slot live and returns it. When all are live it appends a free page: there must be one. */
size_t dcp_slot_take(dcp_slots *slots, dcp_pool *pool);
void dcp_slots_keep(dcp_slots *slots, const uint32_t *bitmap); /* makes the slots of bitmap [pages] the live ones */

/* ---- cache.c: what a slot holds; sequence.c: who owns it. ---- */

/* When token i arrives, an earlier live token j stays iff
 *     (rank == 0  or  s > threshold  or  i - j <= delay)  and
 *     (window == 0  or  i - j < window  or  j < first  or  stride divides j  or  j is a heavy hitter)
 * and, under propagate_in_depth, no earlier layer dropped it. No dropped token comes back. Stride 0 divides nothing.
 * Heavy hitters, if by_attention: the `heavy` tokens with most attention, of those that no other condition keeps.
 * Budget: while more than `budget` tokens that are left have i - j > delay, the one of them with the lowest s leaves,
 * the earliest of equals first. But a pinned token stays whatever the rules say: no heavy hitter, not counted in a
 * budget. */
typedef struct {
    size_t window, first, stride, heavy, budget, delay; /* a budget of 0 is none */
    int by_attention;
    float threshold;
} dcp_policy;

typedef struct { /* what a cache is made for */
    size_t layers, positions, heads, head_dim;
    size_t rank, page_slots; /* r of the interaction keys, 0 without learned dropping; 1..32 */
    size_t max_bytes;  /* the most bytes of owned and free pages together; 0 is no bound */
    size_t threads;    /* the most threads of a step, at least 1 */
    int kv;            /* how keys and values are stored */
} dcp_shape;

/* A page's keys are rows of 32 words, word s for slot s: [heads, D]. The rows of a head are one panel, as weights have.
 * Its values are panels [heads, v_panels, page_slots, 32]; padding is undefined. The rest has rows like the keys', in
 * fields: the page's owners, in the first word of a row; scales of int8 keys and values [heads]; k_int [rank]; attention
 * so far [heads], if by_attention; position. */
enum { DCP_OWNERS, DCP_K_SCALE, DCP_V_SCALE, DCP_K_INT, DCP_SUMS, DCP_POSITION, DCP_FIELDS };

/* What decided a drop: the score; the layer before; position; attention; the budget. */
enum { DCP_LEARNED, DCP_INHERITED, DCP_WINDOW, DCP_HEAVY, DCP_BUDGET, DCP_REASONS };

typedef struct {
    dcp_shape shape;
    dcp_policy policy;
    size_t channels, v_panels; /* heads * head_dim; head_dim / 32, rounded up */
    size_t list_pages;         /* the most pages of one (layer, sequence) */
    size_t field[DCP_FIELDS];  /* where in the rest of a page each field starts, in bytes */
    size_t *dropped;           /* NULL, or [layers, DCP_REASONS]: each step adds how many tokens it dropped */
    dcp_pool pool;
} dcp_cache;

typedef struct {
    int released, pins; /* whether it was; whether any token is pinned */
    uint32_t *pinned;   /* [positions / 32, rounded up]: token j is pinned where bit j % 32 of word j / 32 is set */
    dcp_slots *layer;   /* [layers] */
} dcp_sequence;

/* Fills an empty cache, without pages. Returns DCP_OK, or DCP_EINVAL if a size is out of range: the most is 2^24. */
int dcp_cache_init(dcp_cache *cache, const dcp_shape *shape, const dcp_policy *policy);

/* Makes a sequence without tokens at the start of `memory` (dcp_sequence_bytes, aligned for pointers). Returns it. */
size_t dcp_sequence_bytes(const dcp_cache *cache);
dcp_sequence *dcp_sequence_init(const dcp_cache *cache, void *memory);

/* Gives a child without tokens the parent's, in the same slots of the same pages, and its pins. Returns DCP_OK, or
 * DCP_EINVAL if one of the two was released or the child has tokens. */
int dcp_sequence_fork(const dcp_cache *cache, dcp_sequence *child, const dcp_sequence *parent);

/* Gives each sequence[b] what draft[b] has, a fork of it that was fed count[b] tokens more: all at once. Releases the
 * drafts. Returns DCP_OK, or DCP_EINVAL if one of them was released, or a sequence has changed since it was forked. */
int dcp_sequence_adopt(dcp_cache *cache, dcp_sequence *const *sequence, dcp_sequence *const *draft, const size_t *count,
                       size_t batch);

/* Gives a sequence without tokens pages[l] free pages in each layer l, whose live slots are in bitmap, those of layer 0
 * first; it has then seen `seen` tokens. The caller writes what the slots hold. Returns DCP_OK; DCP_EINVAL if the
 * sequence was released or has tokens, DCP_ENOROOM if there are too few free pages. */
int dcp_sequence_fill(dcp_cache *cache, dcp_sequence *sequence, size_t seen, const size_t *pages,
                      const uint32_t *bitmap);

/* Gives the sequence's pages up. Later calls refuse the sequence; its memory may go when there are none. */
void dcp_sequence_release(dcp_cache *cache, dcp_sequence *sequence);

/* How many free pages layers first .. end - 1 can need for count[b] more tokens of each sequence[b]. It is enough if
 * none is dropped, and every page that a sequence shares must be copied if `drops`: if anything may be dropped, or if
 * attention is counted. */
size_t dcp_more_pages(const dcp_cache *cache, dcp_sequence *const *sequence, const size_t *count, size_t batch,
                      size_t first, size_t end, int drops);

/* table [pages, page_slots] = the position of the token in each slot of the layer's first `pages` pages, -1 in a free
 * slot. Returns how many pages the layer owns. */
size_t dcp_slot_table(int32_t *table, size_t pages, const dcp_cache *cache, const dcp_slots *slots);

/* ---- step.c: one layer's step over the live slots; judge.c and attend.c are its passes. ---- */

/* The new tokens of `batch` different sequences in one layer: all rows of the first sequence, then all of the second,
 * and so on. Sequence b has count[b] rows, at positions start[b], start[b] + 1, ... */
typedef struct {
    size_t layer, batch;
    dcp_sequence *const *sequence;
    const size_t *start, *count;
    const float *q, *k, *v;     /* rows of channels, `stride` floats apart */
    const float *q_int, *k_int; /* rows of rank, int_stride apart; not read when rank is 0 */
    size_t stride, int_stride;
    float scale, beta;          /* q . k is multiplied by scale; beta is added to each interaction score */
    const int32_t *inherited;   /* [pairs, 2]: (row, position) dropped by the layer before; rows ascend */
    size_t pairs;               /* 0 unless propagate_in_depth */
    const uint8_t *pinned;      /* [rows]: 1 for a token that is never dropped, the same in all layers; NULL: none is */
} dcp_input;

size_t dcp_step_bytes(const dcp_cache *cache, const size_t *count, size_t batch); /* of workspace, for dcp_step */

/* Decodes one layer; the workspace is aligned to 64 bytes. Each row, in order: drops its inherited pairs, scores the
 * live tokens, drops by score, then by position and attention, inserts its own token, attends. At the end it compacts.
 * out [rows, channels], dcp_stride apart. dropped, with room for [sum of start[b] + count[b], 2]: (row, position) of
 * each token that left this layer; rows ascend, and positions within a row. Returns the number of pairs; or DCP_EINVAL
 * if the layer does not exist, a sequence was released, a start is not the number of tokens seen, or a position is too
 * large; DCP_ENOROOM if there are too few free pages or bytes of workspace. */
ptrdiff_t dcp_step(float *out, int32_t *dropped, dcp_cache *cache, const dcp_input *input, void *workspace,
                   size_t bytes);

/* ---- decode.c: tokens in, logits out. ---- */

/* A layer's weights, under GPT-2's names; `interaction`, unused if r is 0, is q_int and k_int side by side [C, 2 r]. */
typedef struct {
    const float *ln_1_weight, *ln_1_bias, *ln_2_weight, *ln_2_bias;
    dcp_matrix c_attn, attn_c_proj, c_fc, mlp_c_proj, interaction;
    float scale, beta; /* as in dcp_input */
} dcp_layer;

typedef struct {
    dcp_matrix wte, head; /* both [C, V] */
    const float *wpe, *ln_f_weight, *ln_f_bias;
    const dcp_layer *layer;
    float epsilon;
    int activation, propagate_in_depth;
} dcp_model;

/* New tokens of `batch` different sequences: count[b] > 0 ids for sequence b, one sequence after the other. */
typedef struct {
    size_t batch;
    dcp_sequence *const *sequence;
    const size_t *count;
    const int64_t *ids;
    int all;          /* 1: logits of all tokens; 0: of each sequence's last token */
    int32_t *dropped; /* NULL, or [layers, room, 2]: gets each layer's pairs (row, position), as from dcp_step */
    size_t *pairs;    /* [layers]: gets how many pairs each layer has; not used if dropped is NULL */
    size_t room;      /* at least the tokens of all sequences, seen and new */
    const uint8_t *pinned; /* as in dcp_input */
} dcp_feed;

size_t dcp_decode_bytes(const dcp_cache *cache, const dcp_model *model, const dcp_feed *feed); /* of workspace */

/* Appends the tokens to their sequences, in all layers; logits [rows wanted, V], dcp_stride apart. The workspace is
 * aligned to 64 bytes. Returns DCP_OK; DCP_EINVAL if an id does not exist, a count is 0, a sequence was released, its
 * layers have seen different numbers of tokens, or a position is too large; DCP_ENOROOM if there are too few free pages
 * (dcp_more_pages of all layers), bytes of workspace, or room. */
int dcp_decode(float *logits, dcp_cache *cache, const dcp_model *model, const dcp_feed *feed, void *workspace,
               size_t bytes);
