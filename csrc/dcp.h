/* dcp.h - the pruned key-value cache.
 *
 * Only declarations: this is the manual of the C API and also the text that cffi parses, so it includes nothing
 * (a C file includes <stddef.h> and <stdint.h> first). Read on in slots.c, cache.c, attention.c.
 *
 * A token of a sequence takes one slot in every layer. Slots come in pages of `page_slots`; each (layer, sequence)
 * owns the pages that its live tokens need, and takes them from one pool. Here is one such list of pages, with
 * page_slots = 4; a number is the position of the token in a live slot, a dot is a free slot:
 *
 *                    page 0          page 1          page 2
 *   insert 0..8      0  1  2  3      4  5  6  7      8  .  .  .     a new token takes the lowest free slot
 *   drop 1, 2, 6     0  .  .  3      4  5  .  7      8  .  .  .     a drop clears one bit: nothing moves
 *   reuse: insert 9  0  9  .  3      4  5  .  7      8  .  .  .     the lowest free slot, again
 *   compact          0  9  8  3      4  5  .  7                     7 tokens need 2 pages: the last page's tokens
 *                                                                   move into holes, the page goes to the pool
 *
 * So after every step the slots that a (layer, sequence) owns are fewer than its live tokens + one page. Attention
 * walks the set bits: slots in order, whatever the order of the positions (softmax does not mind).
 *
 * One thread at a time may use a cache. Nothing here prints or exits; only dcp_cache_new, dcp_sequence_new and
 * dcp_reserve allocate.
 */

enum {
    DCP_OK = 0,
    DCP_ENOMEM = -1,  /* out of memory, or past the cache's max_bytes */
    DCP_EINVAL = -2,  /* an argument is out of its range */
    DCP_ENOROOM = -3  /* a step without the dcp_reserve that it needs */
};

/* ---- slots.c: pages, live bitmaps, lowest free slot. Integers and addresses only. ---- */

/* The memory of a cache: pages that are owned, and pages that are free to be taken. */
typedef struct {
    size_t page_slots; /* slots of a page, 1..64: one bit each in a uint64_t */
    size_t page_bytes; /* a multiple of 64 */
    size_t max_pages;  /* never hold more than this */
    size_t pages;      /* all pages, owned and free */
    size_t n_free;     /* of these, in free_page */
    float **free_page; /* [n_free], with room for all pages, so that giving one back cannot fail */
} dcp_pool;

/* The live tokens of one sequence in one layer: "slot s" is bit s % page_slots of bitmap[s / page_slots]. */
typedef struct {
    size_t seen;      /* tokens inserted so far: the next one's position */
    size_t live;      /* set bits in bitmap */
    size_t pages;     /* pages owned */
    uint64_t *bitmap; /* [pages], room for as many as the model's positions can ever need */
    float **page;     /* [pages], the same room */
} dcp_slots;

/* Pages that `tokens` tokens need. */
size_t dcp_pages_for(size_t tokens, size_t page_slots);

/* Sees to it that n_free pages are free. Returns DCP_OK or DCP_ENOMEM; after a failure the pool may hold more free pages
 * than before, and nothing else has changed. */
int dcp_pool_grow(dcp_pool *pool, size_t n_free);

/* Frees a pool whose pages are all free. */
void dcp_pool_clear(dcp_pool *pool);

/* Marks the lowest free slot live and returns it. When all are live it appends a page, which must be free in the
 * pool: dcp_reserve sees to that. */
size_t dcp_slot_take(dcp_slots *slots, dcp_pool *pool);

/* Marks a live slot free. */
void dcp_slot_drop(dcp_slots *slots, size_t slot, size_t page_slots);

/* Takes the last page off the list, with the tokens in it, and makes it free. Returns the bitmap it had: what its live
 * slots hold can be read from slots->page[slots->pages] until the pool is used again. */
uint64_t dcp_page_release(dcp_slots *slots, dcp_pool *pool);

/* ---- cache.c: what a slot holds. ---- */

typedef struct dcp_sequence {
    struct dcp_sequence *next; /* the cache's list of sequences */
    dcp_slots *layer;          /* [layers] */
} dcp_sequence;

/* A page is page_slots rows of k [channels], then as many of v [channels], of k_int [rank], of position (int32_t),
 * each of the four starting at a multiple of 64 bytes: a kernel that reads the keys reads them one after another. */
typedef struct {
    size_t layers, positions, heads, channels, rank;
    size_t list_pages;                 /* the most pages of one (layer, sequence): those that `positions` tokens need */
    size_t v_at, k_int_at, position_at; /* where a page's rows start, in floats from its own start; k's at 0 */
    dcp_pool pool;
    dcp_sequence *first;
    float *scratch; /* [heads, list_pages * page_slots]: scores and attention weights of one token */
} dcp_cache;

typedef struct {
    size_t live_tokens, slots, bytes_owned, bytes_reserved;
} dcp_stats;

/* An empty cache for a model of these sizes; rank is r, 0 without learned dropping. Its pages never take more than
 * max_bytes (0: no bound). Returns NULL when out of memory, or when a size is impossible (each but rank is 1 or more,
 * none is above 2^24, heads divides channels, page_slots is at most 64). */
dcp_cache *dcp_cache_new(size_t layers, size_t positions, size_t heads, size_t channels, size_t rank,
                         size_t page_slots, size_t max_bytes);

/* Frees the cache and all its sequences. */
void dcp_cache_free(dcp_cache *cache);

/* A new sequence without tokens, owned by the cache; NULL, and nothing changed, when out of memory. */
dcp_sequence *dcp_sequence_new(dcp_cache *cache);

/* Frees a sequence of this cache; its pages are free for others. */
void dcp_sequence_free(dcp_cache *cache, dcp_sequence *sequence);

/* Makes room, in every layer, for count[b] more tokens of sequence[b], b < batch, so that the steps which insert them
 * cannot fail. The sequences must differ. Returns DCP_OK; DCP_EINVAL when a sequence would pass the last position;
 * DCP_ENOMEM. After a failure no sequence has changed. */
int dcp_reserve(dcp_cache *cache, dcp_sequence *const *sequence, const size_t *count, size_t batch);

/* Inserts the next token of a (layer, sequence) at the lowest free slot. k_int may be NULL when rank is 0. There must
 * be a free slot or a free page. */
void dcp_insert(dcp_cache *cache, dcp_slots *slots, const float *k, const float *v, const float *k_int);

/* While there is a whole page too many: moves the last page's tokens into holes, gives the page back to the pool. */
void dcp_compact(dcp_cache *cache, dcp_slots *slots);

/* The position of the token in a live slot of a page. */
int32_t dcp_position(const dcp_cache *cache, const float *page, size_t slot);

/* Writes to table [pages * page_slots] the position in each slot, -1 where it is free. */
void dcp_slot_table(int32_t *table, const dcp_cache *cache, const dcp_slots *slots);

/* Totals over all layers and sequences; reserved counts the pool's free pages too. */
dcp_stats dcp_cache_stats(const dcp_cache *cache);

/* For tests: fills every slot that is not live with NaN, in owned and in free pages. No result may change. */
void dcp_poison(dcp_cache *cache);

/* ---- attention.c: one layer's step over the live slots. ---- */

/* A ragged block: the new tokens of `batch` different sequences in one layer, all of the first one's rows, then all of
 * the second one's. Sequence b has count[b] rows at positions start[b], start[b] + 1, ... */
typedef struct {
    size_t layer, batch;
    dcp_sequence *const *sequence;
    const size_t *start, *count;
    const float *q, *k, *v;      /* [rows, channels] */
    const float *q_int, *k_int;  /* [rows, rank], or both NULL when rank is 0: no token is dropped by its score */
    float scale, beta;           /* q . k is multiplied by scale; beta is added to the interaction score */
    const int32_t *inherited;    /* [pairs, 2]: (row, position) dropped by the layer before; rows ascending */
    size_t pairs;
} dcp_block;

/* Decodes the block: for each row, in order, drop the tokens it inherits as dropped, score the live ones, drop those
 * whose score is not above 0, insert the row's own token, attend. Then compacts.
 * out [rows, channels]. dropped [sum of start[b] + count[b], 2]: (row, position) of each token that left this layer's
 * cache; rows ascend, and positions within a row.
 * Returns the number of pairs in dropped; or, with the cache unchanged, DCP_EINVAL when the layer does not exist, a
 * start is not the number of tokens seen, or a sequence would pass the last position; DCP_ENOROOM when the pool has too
 * few free pages. */
ptrdiff_t dcp_step(float *out, int32_t *dropped, dcp_cache *cache, const dcp_block *block);

/* Score pass: s[slot] = q_int . k_int / sqrt(rank) + beta for every live slot; s [pages * page_slots]. */
void dcp_score(float *restrict s, const float *restrict q_int, const dcp_cache *cache, const dcp_slots *slots,
               float beta);

/* Attend pass: out [channels] = softmax(scale * q k^T) v over the live slots (at least one), head by head.
 * weights [heads, live] is scratch. */
void dcp_attend(float *restrict out, float *restrict weights, const float *restrict q, const dcp_cache *cache,
                const dcp_slots *slots, float scale);

/* The instruction set that the passes run with here: "avx512f", "avx2" or "baseline". */
const char *dcp_simd_level(void);
