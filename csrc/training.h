/* training.h - the C kernels of training, and their manual; like dcp.h, the text that cffi parses.
 *
 * Arrays are float32. No function allocates, and none can fail: the caller checks all arguments. `threads` is the most
 * that a function uses, 0 for all that OpenMP gives. */

/* ---- training_attention.c, training_lanes.c: dcp_ref/attention.py ---- */

/* Attention over a whole sequence of T tokens with H heads of D numbers. In q, k and v the next token is `token` floats
 * further on, the next head `head` floats. */
typedef struct {
    size_t T, H, D, token, head;
    float scale;
    const float *q, *k, *v;
    const float *log_i;      /* [T, T] */
    float *y, *log_sum;      /* [T, H, D], [H, T]: written by the forward, read by the backward */
    const float *dy;         /* [T, H, D] */
    float *dq, *dk, *dv;     /* [T, H, D]: dq is written; dk and dv are added to: pass zeros */
    float *dlog_i;           /* [T, T]: written where a key is live, else left as it is: pass zeros */
} dcp_attention;

size_t dcp_attention_floats(size_t T, size_t H, size_t D); /* of the scratch of dcp_attend_all */

/* Computes the forward (y and log_sum), or the backward (dq, dk, dv and dlog_i). */
void dcp_attend_all(const dcp_attention *t, float *scratch, int backward, size_t threads);

/* ---- training_mask.c: dcp_ref/interaction.py ---- */

/* log I [T, T] from scores s [T, T], and slope [T, T], the derivative of log keep by s. alpha = n + 1, n finite. keep
 * is 1 while i - j <= delay. */
void dcp_log_mask(float *log_i, float *slope, const float *s, size_t T, float n, size_t delay, size_t threads);

/* ds [T, T] from dlog_i [T, T] and the forward's slope. */
void dcp_log_mask_backward(float *ds, const float *dlog_i, const float *slope, size_t T, size_t threads);

/* ---- training_elementwise.c: dcp_ref/layers.py ---- */

/* y [n] = gelu_new of x [n], and slope [n], its derivative. */
void dcp_gelu_new_saved(float *y, float *slope, const float *x, size_t n, size_t threads);

/* e [rows, n] = exp(x [rows, n] - largest [rows]), with the largest number of each row of x; sum [rows] of the rows of
 * e. */
void dcp_exp_rows(float *e, float *largest, float *sum, const float *x, size_t rows, size_t n, size_t threads);
