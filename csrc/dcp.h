/* dcp.h - GPT-2 with a pruned key-value cache: the manual of the C API, and the text that cffi parses, so declarations
 * only. Read on in slots.c, cache.c, judge.c, attend.c, step.c, decode.c; linear.c, layers.c, threads.c.
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
 * walks the pages in order, whatever the order of the positions: softmax does not mind.
 *
 * Nothing here allocates, prints or exits: all memory is the caller's. One thread at a time may use a cache. A call
 * either does all of its work or, returning an error, changes nothing. Results do not depend on the number of threads. */

enum {
    DCP_OK = 0,
    DCP_EINVAL = -1, /* an argument is out of its range, or a sequence was released */
    DCP_ENOROOM = -2 /* too few free pages, or too small a workspace */
};
/* How numbers are stored, in 4 >> type bytes, int8 with a scale; arithmetic is in float. */
enum { DCP_FLOAT32, DCP_FLOAT16, DCP_INT8 };
enum {
    DCP_LANES = 32,      /* columns of a panel of weights or keys; the most slots of a page */
    DCP_ROUND_ROWS = 48, /* rows of a prompt that a step takes at once: what they drop leaves the cache after them */
    DCP_TILE_ROWS = 12   /* the most rows that the inner loop takes at once */
};

/* ---- slots.c: pages, live bitmaps, lowest free slot. Integers and addresses only. ---- */

/* A page has three areas of memory. Keys of pages that follow each other do so too, and are read as one. */
enum { DCP_KEYS, DCP_REST, DCP_VALUES, DCP_AREAS };
typedef struct { unsigned char *area[DCP_AREAS]; } dcp_page;

/* A page is owned (by a sequence), free (backed by memory, unowned) or spare (address space only). */
typedef struct {
    size_t page_slots;            /* 1..32, a bit each in a uint32_t */
    size_t area_bytes[DCP_AREAS]; /* multiples of the system's page size */
    size_t pages, n_free;         /* pages = owned + free; of these the free ones */
    size_t n_spare, most;         /* spare pages; the most that `pages` may become */
    size_t room;                  /* of idle: for all pages, so that giving one back cannot fail */
    dcp_page *idle;               /* [n_spare], then [n_free] */
} dcp_pool;

/* The live tokens of one sequence in one layer: slot s is bit s % page_slots of bitmap[s / page_slots]. */
typedef struct {
    size_t seen, live, pages; /* tokens inserted so far, which is the next one's position; bits set; pages owned */
    uint32_t *bitmap;         /* [pages], with room for what the model's positions can ever need */
    dcp_page *page;           /* [pages], with the same room */
} dcp_slots;

size_t dcp_pages_for(size_t tokens, size_t page_slots); /* the pages that this number of tokens needs */
size_t dcp_page_bytes(const dcp_pool *pool);

/* Moves the list of idle pages to an array of `room` entries, which outlives the pool or the next move. Returns DCP_OK, or
 * DCP_ENOROOM when not all pages fit. */
int dcp_pool_list(dcp_pool *pool, dcp_page *idle, size_t room);

/* Adds spare pages in `memory`: pages * dcp_page_bytes, aligned to the system's pages, untouched, outliving the pool.
 * Returns DCP_OK, or DCP_ENOROOM when the list has no room for them. */
int dcp_pool_add(dcp_pool *pool, unsigned char *memory, size_t pages);

/* Turns spare pages into free ones until there are n_free. Returns DCP_OK, or DCP_ENOROOM when there are too few spare
 * ones or `pages` would pass `most`. Trim makes free pages spare, and gives their memory back to the system. */
int dcp_pool_grow(dcp_pool *pool, size_t n_free);
void dcp_pool_trim(dcp_pool *pool);

dcp_page dcp_page_take(dcp_pool *pool); /* a free page: there must be one; threads may share the pool while all take, */
void dcp_page_free(dcp_pool *pool, dcp_page page); /* ... or while all make owned pages free */

/* Marks the lowest free slot live and returns it. When all are live it appends a free page: there must be one. */
size_t dcp_slot_take(dcp_slots *slots, dcp_pool *pool);

void dcp_slots_keep(dcp_slots *slots, const uint32_t *bitmap); /* makes the slots of bitmap [pages] the live ones */

/* ---- cache.c: what a slot holds. ---- */

/* When token i arrives, an earlier live token j stays iff
 *     (rank == 0  or  s > threshold  or  i - j <= delay)  and
 *     (window == 0  or  i - j < window  or  j < first  or  stride divides j  or  j is a heavy hitter)
 * and, under propagate_in_depth, no earlier layer dropped it. Stride 0 divides nothing. Heavy hitters, if by_attention,
 * are the `heavy` tokens that got most attention, of those that no other condition keeps. A drop is for good. */
typedef struct {
    size_t window, first, stride, heavy, delay;
    int by_attention;
    float threshold;
} dcp_policy;

typedef struct { /* what a cache is made for */
    size_t layers, positions, heads, head_dim;
    size_t rank;       /* r of the interaction keys, 0 without learned dropping */
    size_t page_slots; /* 1..32 */
    size_t max_bytes;  /* the bound of owned and free pages together; 0 for none */
    size_t threads;    /* the most threads of a step */
    int kv;            /* how keys and values are stored */
} dcp_shape;

/* A page's keys: rows of 32 words, word s for slot s, [heads, D]: those of a head are one panel, as weights are.
 * Its values: panels [heads, v_panels, page_slots, 32], padded with anything. The fields of the rest are rows as keys
 * are: float scales of int8 keys and values [heads]; k_int [rank]; attention so far [heads], if by_attention; position. */
enum { DCP_K_SCALE, DCP_V_SCALE, DCP_K_INT, DCP_SUMS, DCP_POSITION, DCP_FIELDS };

typedef struct {
    dcp_shape shape;
    dcp_policy policy;
    size_t channels, v_panels; /* heads * head_dim; panels of 32 channels in a head's values */
    size_t list_pages;         /* the most pages of one (layer, sequence) */
    size_t field[DCP_FIELDS];  /* where in the rest of a page each field starts, in bytes */
    dcp_pool pool;
} dcp_cache;

typedef struct {
    int released;
    dcp_slots *layer; /* [layers] */
} dcp_sequence;

/* Fills an empty cache, without pages. Returns DCP_OK, or DCP_EINVAL when a size is out of range: the most is 2^24. */
int dcp_cache_init(dcp_cache *cache, const dcp_shape *shape, const dcp_policy *policy);

/* A new sequence, without tokens, in `memory` of dcp_sequence_bytes, aligned for pointers; it starts there. */
size_t dcp_sequence_bytes(const dcp_cache *cache);
dcp_sequence *dcp_sequence_init(const dcp_cache *cache, void *memory);

/* Gives a child without tokens those of its parent, in the same slots of pages of its own. Returns DCP_OK; DCP_EINVAL
 * when the parent was released; DCP_ENOROOM without as many free pages as the parent owns. */
int dcp_sequence_fork(dcp_cache *cache, dcp_sequence *child, const dcp_sequence *parent);

/* Makes a sequence's pages free for others, and refuses it from then on; its memory is the caller's again. */
void dcp_sequence_release(dcp_cache *cache, dcp_sequence *sequence);

/* The free pages that inserting count[b] more tokens into sequence[b] can need in layers first .. end - 1 together:
 * what they need when none is dropped. */
size_t dcp_more_pages(const dcp_cache *cache, dcp_sequence *const *sequence, const size_t *count, size_t batch,
                      size_t first, size_t end);

/* Keeps the slots of bitmap; while that is a whole page too many, moves its tokens into holes and frees it. */
void dcp_compact(dcp_cache *cache, dcp_slots *slots, const uint32_t *bitmap);

int32_t *dcp_positions(const dcp_cache *cache, dcp_page page); /* those of a page's slots [32] */

/* The position of the token in every slot of a layer, -1 in a free one: table [pages, page_slots]. Returns the pages that
 * the layer owns, of which the table holds the first `pages`. */
size_t dcp_slot_table(int32_t *table, size_t pages, const dcp_cache *cache, const dcp_slots *slots);

/* ---- step.c: one layer's step over the live slots; judge.c and attend.c are its passes. ---- */

/* The new tokens of `batch` different sequences in one layer: all rows of the first one, then all of the second one, and
 * so on. Sequence b has count[b] rows, at positions start[b], start[b] + 1, ... */
typedef struct {
    size_t layer, batch;
    dcp_sequence *const *sequence;
    const size_t *start, *count;
    const float *q, *k, *v;     /* rows of channels, `stride` floats apart */
    const float *q_int, *k_int; /* rows of rank, int_stride apart; not read when rank is 0 */
    size_t stride, int_stride;
    float scale, beta;          /* q . k is multiplied by scale; beta is added to the interaction score */
    const int32_t *inherited;   /* [pairs, 2]: (row, position) dropped by the layer before; rows ascend */
    size_t pairs;
} dcp_input;

size_t dcp_step_bytes(const dcp_cache *cache, const size_t *count, size_t batch); /* workspace, aligned to 64 bytes */

/* Decodes one layer: for each row, in order, drop the tokens that it inherits as dropped, score the live ones, drop those
 * that their scores drop, then those that their positions do, insert the row's own token, attend. Then compacts.
 * out [rows, channels], dcp_stride apart. dropped [sum of start[b] + count[b], 2]: (row, position) of each token that
 * left this layer; rows ascend, and positions within a row. Returns the number of pairs in it; or DCP_EINVAL when the
 * layer does not exist, a sequence was released, a start is not the number of tokens seen, or the last position would be
 * passed; DCP_ENOROOM when free pages or workspace are too few. */
ptrdiff_t dcp_step(float *out, int32_t *dropped, dcp_cache *cache, const dcp_input *input, void *workspace, size_t bytes);

/* ---- linear.c, layers.c: the other kernels. `threads` is the most they use, 0 for all that OpenMP gives. ---- */

/* Floats from the start of a row of x, y or add to the next one's: n, or n + 16 where n is a multiple of 1024. Rows that
 * are a multiple of 4096 bytes apart would share a few lines of the nearest cache. */
size_t dcp_stride(size_t n);

/* W [n_in, n_out] in panels of 32 columns, the last one padded with zeros: panel [n_out / 32, n_in / shared, 32, shared],
 * both rounded up; shared rows, 2 of float16 and 4 of int8, stand side by side. */
typedef struct {
    size_t n_in, n_out;
    int type;                  /* how the panels are stored */
    const void *panel;
    const float *scale, *bias; /* [n_out]: of the columns, for DCP_INT8; or NULL */
} dcp_matrix;

/* y [rows, n_out] = x [rows, n_in] W + bias, + add [rows, n_out] where it is not NULL (it may be y). Adds up over n_in
 * in order, so that a row of y does not depend on the other rows. */
void dcp_linear(float *y, const float *x, const float *add, const dcp_matrix *w, size_t rows, size_t threads);

/* y [rows, n] = (x - mean) / sqrt(variance + epsilon) * gain + bias, row by row; y may be x. */
void dcp_layer_norm(float *y, const float *x, const float *gain, const float *bias, float epsilon, size_t rows, size_t n,
                    size_t threads);

enum { DCP_GELU_NEW, DCP_GELU, DCP_RELU };
/* y [n] = the activation of x [n], whatever their rows; y may be x. */
void dcp_activation(float *y, const float *x, int kind, size_t n, size_t threads);

/* y [rows, n_in] = column ids[row] of wte + row positions[row] of wpe [.., n_in]: wte is packed as the head is. */
void dcp_embedding(float *y, const int64_t *ids, const int64_t *positions, const dcp_matrix *wte, const float *wpe,
                   size_t rows, size_t threads);

/* ---- decode.c: tokens in, logits out. ---- */

/* One layer's weights, under GPT-2's names; q_int and k_int side by side, [C, 2 r]. */
typedef struct {
    const float *ln_1_weight, *ln_1_bias, *ln_2_weight, *ln_2_bias;
    dcp_matrix c_attn, attn_c_proj, c_fc, mlp_c_proj, interaction;
    float scale, beta;
} dcp_layer;

typedef struct {
    dcp_matrix wte, head; /* both [C, V] */
    const float *wpe, *ln_f_weight, *ln_f_bias;
    const dcp_layer *layer;
    float epsilon;
    int activation, propagate_in_depth;
} dcp_model;

/* New tokens of `batch` different sequences: count[b] > 0 ids of sequence b, one sequence after the other. */
typedef struct {
    size_t batch;
    dcp_sequence *const *sequence;
    const size_t *count;
    const int64_t *ids;
    int all;          /* logits of all tokens; 0: of each sequence's last */
    int32_t *dropped; /* NULL, or for what leaves: [layers, room, 2], pairs (row, position) as dcp_step gives them */
    size_t *pairs;    /* how many in each layer [layers] */
    size_t room;      /* for the tokens seen and new of all sequences */
} dcp_feed;

size_t dcp_decode_bytes(const dcp_cache *cache, const dcp_model *model, const dcp_feed *feed); /* of workspace */

/* Appends the tokens to their sequences; logits [rows wanted, V], dcp_stride apart. Returns DCP_OK; DCP_EINVAL when an id
 * does not exist, a sequence was released, or the last position would be passed; DCP_ENOROOM when free pages or
 * workspace are too few. */
int dcp_decode(float *logits, dcp_cache *cache, const dcp_model *model, const dcp_feed *feed, void *workspace,
               size_t bytes);

/* ---- threads.c ---- */

/* The threads that a kernel uses when told `threads`: no more than OpenMP gives or the system can start; 1 in a child of a
 * fork, as OpenMP does not survive it. */
size_t dcp_threads(size_t threads);

const char *dcp_simd_level(void); /* of the kernels here: "avx512f", "avx2" or "baseline" */
