/* dcp.h - GPT-2's kernels, and the pruned key-value cache: the manual of the C API and the text that cffi parses, so
 * only declarations. Read on in slots.c, cache.c, attention.c; linear.c, layers.c.
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
 * walks the pages in order, whatever the order of the positions (softmax does not mind).
 *
 * One thread at a time may use a cache; a kernel uses up to `threads` of its own, never more than OpenMP gives, 0: all
 * of those. No result depends on their number. Nothing prints or exits; dcp_pool_add, dcp_sequence_new, _fork allocate. */

enum {
    DCP_OK = 0,
    DCP_ENOMEM = -1, /* out of memory */
    DCP_EINVAL = -2, /* an argument is out of its range */
    DCP_ENOROOM = -3 /* not the pages, or the room, that it needs */
};
/* How numbers are stored, in 4 >> type bytes, int8 with a scale; arithmetic is in float. */
enum { DCP_FLOAT32, DCP_FLOAT16, DCP_INT8 };
enum {
    DCP_LANES = 32,      /* columns of a panel of weights or keys; the most slots of a page */
    DCP_ROUND_ROWS = 48, /* rows of a prompt that a step takes at once: what they drop leaves the cache after them */
    DCP_TILE_ROWS = 12   /* the most rows that the inner loop takes at once */
};

/* ---- slots.c: pages, live bitmaps, lowest free slot. Integers and addresses only. ---- */

/* A page is three pieces of memory: then the keys of pages that follow each other do so too, and read as one. */
enum { DCP_KEYS, DCP_REST, DCP_VALUES, DCP_PIECES };
typedef struct { unsigned char *piece[DCP_PIECES]; } dcp_page;

/* The pages of a cache: owned ones, free ones, and spare ones: these hold no memory of the system. */
typedef struct {
    size_t page_slots, piece_bytes[DCP_PIECES]; /* 1..32 slots, a bit each in a uint32_t; whole pages of the system */
    size_t pages, n_free, n_spare; /* owned and free ones; of these the free ones; spare ones */
    dcp_page *idle;                /* [n_spare], then [n_free]; with room for all: giving one back cannot fail */
} dcp_pool;

/* The live tokens of one sequence in one layer: "slot s" is bit s % page_slots of bitmap[s / page_slots]. */
typedef struct {
    size_t seen, live, pages; /* tokens inserted so far: the next one's position; set bits in bitmap; pages owned */
    uint32_t *bitmap;         /* [pages], with room for what the model's positions can ever need */
    dcp_page *page;           /* [pages], with the same room */
} dcp_slots;

size_t dcp_pages_for(size_t tokens, size_t page_slots); /* that so many tokens need */

/* Adds spare pages: memory of the caller's, whole pages of the system, not used yet, that outlives the pool. And:
 * makes spare pages free until n_free are. Return DCP_OK; or, nothing changed, DCP_ENOMEM; DCP_ENOROOM. */
int dcp_pool_add(dcp_pool *pool, unsigned char *memory, size_t pages);
int dcp_pool_grow(dcp_pool *pool, size_t n_free);

/* Gives the memory of free pages back to the system: they become spare. */
void dcp_pool_trim(dcp_pool *pool);

/* Take a page out of the free ones; make an owned one free. Threads may share the pool while all take, or all give. */
dcp_page dcp_page_take(dcp_pool *pool);
void dcp_page_free(dcp_pool *pool, dcp_page page);

/* Marks the lowest free slot live and returns it. When all are live it appends a free page: there must be one. */
size_t dcp_slot_take(dcp_slots *slots, dcp_pool *pool);

/* Makes the slots of bitmap [pages] the live ones. */
void dcp_slots_keep(dcp_slots *slots, const uint32_t *bitmap);

/* ---- cache.c: what a slot holds. ---- */

/* What drops a token j when token i > j arrives, besides inheritance: its learned score, where the cache has a rank,
 * unless it is above threshold, or i - j <= delay; and, where window is not 0, its position, unless i - j < window, or
 * j < first, or stride is not 0 and divides j; or, if by_attention, j is among the `heavy` others most attended before. */
typedef struct {
    size_t window, first, stride, heavy, delay;
    int by_attention;
    float threshold;
} dcp_policy;

typedef struct dcp_sequence {
    struct dcp_sequence *next; /* the cache's list of sequences */
    dcp_slots *layer;          /* [layers] */
} dcp_sequence;

/* A page's keys: rows of 32 words, word s for slot s, [heads, D], so that those of a head are one panel, as weights are.
 * Its values: panels [heads, v_panels, page_slots, 32], padded with anything. The parts of the rest, such rows as well:
 * float scales of int8 keys and values [heads]; k_int [rank]; attention so far [heads], if by_attention; position, int. */
enum { DCP_K_SCALE, DCP_V_SCALE, DCP_K_INT, DCP_SUMS, DCP_POSITION, DCP_PARTS };

/* A cache is a struct of the caller's: zeros, but for layers to scratch and the first two of pool; no size above 2^24. */
typedef struct {
    size_t layers, positions, heads, channels, head_dim, rank; /* rank is r, 0 without learned dropping */
    int kv;                      /* how keys and values are stored */
    size_t part[DCP_PARTS];      /* where in the rest of a page each starts, in bytes */
    size_t v_panels;             /* 32 channels each: D / 32, rounded up */
    dcp_policy policy;
    size_t list_pages, threads;  /* the most pages of one (layer, sequence); the most threads of a step */
    void *scratch, *round;       /* tiles [threads, heads, list_pages + v_panels]; for a block dcp_round_bytes: */
    size_t round_bytes;
    dcp_pool pool;
    dcp_sequence *first;
} dcp_cache;

void dcp_cache_clear(dcp_cache *cache); /* frees all its sequences and the list of its pages */

/* A new sequence, owned by the cache: without tokens, or with the same ones in the same slots of pages of its own.
 * NULL, and nothing changed, when out of memory or, for a fork, of free pages. */
dcp_sequence *dcp_sequence_new(dcp_cache *cache);
dcp_sequence *dcp_sequence_fork(dcp_cache *cache, const dcp_sequence *sequence);

/* Frees a sequence of this cache; its pages are free for others. */
void dcp_sequence_free(dcp_cache *cache, dcp_sequence *sequence);

/* What steps need that insert count[b] more tokens of sequence[b], b < batch, and drop none: free pages, in layers
 * first .. end - 1 together; and bytes of cache->round. The system gives a page memory only when it is used. */
size_t dcp_more_pages(const dcp_cache *cache, dcp_sequence *const *sequence, const size_t *count, size_t batch,
                      size_t first, size_t end);
size_t dcp_round_bytes(const dcp_cache *cache, const size_t *count, size_t batch);

/* Keeps the slots of bitmap; while there is then a whole page too many, moves its tokens into holes and frees it. */
void dcp_compact(dcp_cache *cache, dcp_slots *slots, const uint32_t *bitmap);

int32_t *dcp_positions(const dcp_cache *cache, dcp_page page); /* those in a page [32] */

/* ---- attention.c: one layer's step over the live slots. ---- */

/* A ragged block: the new tokens of `batch` different sequences in one layer, all of the first one's rows, then all of
 * the second one's. Sequence b has count[b] rows at positions start[b], start[b] + 1, ... */
typedef struct {
    size_t layer, batch;
    dcp_sequence *const *sequence;
    const size_t *start, *count;
    const float *q, *k, *v;     /* rows of channels, `stride` floats apart */
    const float *q_int, *k_int; /* rows of rank, int_stride apart; not read when rank is 0 */
    size_t stride, int_stride;
    float scale, beta;          /* q . k is multiplied by scale; beta is added to the interaction score */
    const int32_t *inherited;   /* [pairs, 2]: (row, position) dropped by the layer before; rows ascending */
    size_t pairs, threads;
} dcp_block;

/* Decodes the block: for each row, in order, drop the tokens it inherits as dropped, score the live ones, drop those
 * that their scores drop, then those that their positions do, insert the row's own token, attend. Then compacts.
 * out [rows, channels], dcp_stride apart. dropped [sum of start[b] + count[b], 2]: (row, position) of each token that
 * left this layer's cache; rows ascend, and positions within a row. Returns the number of pairs in it; or, with the cache
 * unchanged, DCP_EINVAL when the layer does not exist, a start is not the number of tokens seen, or a sequence would pass
 * the last position; DCP_ENOROOM when free pages or round are too few. */
ptrdiff_t dcp_step(float *out, int32_t *dropped, dcp_cache *cache, const dcp_block *block);

/* ---- linear.c, layers.c: the other kernels of a decode step. ---- */

/* Floats from the start of a row of x, y or add to the next one's: n, or 16 more where n is a multiple of 1024, as rows a
 * multiple of 4096 bytes apart would all want the same few lines of the nearest cache. */
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

/* The threads that a kernel uses when told `threads`; in a child of a fork always 1: OpenMP does not survive it. */
size_t dcp_threads(size_t threads);

/* The instruction set that the kernels run with here: "avx512f", "avx2" or "baseline". */
const char *dcp_simd_level(void);
