/* kernels.h - the kernels that know nothing of a cache, and their manual: linear.c, layers.c, threads.c. Like dcp.h, the
 * text that cffi parses.
 *
 * No function allocates, and none can fail but dcp_simd_choose: the caller checks all arguments. `threads` is the most
 * that a function uses, 0 for all that OpenMP gives. */

/* Floats from the start of a row of n numbers to the next row: n, or n + 16 if n is a multiple of 1024. Without
 * padding, rows that are a multiple of 4096 bytes apart would compete for the same few lines of the nearest cache. */
size_t dcp_stride(size_t n);

/* W [n_in, n_out] in panels of 32 columns: panel [n_out / 32, n_in / shared, 32, shared], both rounded up, padded with
 * zeros. `shared` rows stand side by side in one 32-bit word: 1 of float32, 2 of float16, 4 of int8. */
typedef struct {
    size_t n_in, n_out;
    int type;                  /* how the panels are stored */
    const void *panel;
    const float *scale, *bias; /* [n_out]: scales of the columns, NULL unless DCP_INT8; bias, or NULL */
} dcp_matrix;

/* Fills a float32 matrix from w [n_in, n_out], row by row: packs w into `panels`, dcp_matrix_bytes, aligned to 64
 * bytes. The matrix keeps pointing to panels and bias, not to w. */
size_t dcp_matrix_bytes(size_t n_in, size_t n_out);
void dcp_matrix_pack(dcp_matrix *matrix, float *panels, const float *w, size_t n_in, size_t n_out, const float *bias);

/* y [rows, n_out] = x [rows, n_in] W + bias, + add [rows, n_out] if that is not NULL (it may be y). Sums over n_in in
 * order, so that a row of y does not depend on the other rows. */
void dcp_linear(float *y, const float *x, const float *add, const dcp_matrix *w, size_t rows, size_t threads);

/* y [rows, n] = (x - mean) / sqrt(variance + epsilon) * gain + bias, row by row; y may be x. */
void dcp_layer_norm(float *y, const float *x, const float *gain, const float *bias, float epsilon, size_t rows,
                    size_t n, size_t threads);

enum { DCP_GELU_NEW, DCP_GELU, DCP_RELU };
/* y [n] = the activation of x [n]; y may be x. Rows do not matter here: n counts padding between rows too. */
void dcp_activation(float *y, const float *x, int kind, size_t n, size_t threads);

/* y [rows, n_in] = column ids[row] of wte [n_in, V] + row positions[row] of wpe [.., n_in]. */
void dcp_embedding(float *y, const int64_t *ids, const int64_t *positions, const dcp_matrix *wte, const float *wpe,
                   size_t rows, size_t threads);

/* threads.c: the threads of a kernel that may use `threads`: those that OpenMP can start; one in a forked child. */
size_t dcp_threads(size_t threads);

/* The kernels' instruction set, at first the best: "avx512f", "avx2" or "baseline". Only while no other function runs,
 * another one can be chosen. Returns DCP_OK, or DCP_EINVAL if it is unknown, or not here. */
const char *dcp_simd_level(void);
int dcp_simd_choose(const char *level);
