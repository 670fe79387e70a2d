/* training.h - the C kernels of training, and their manual; like dcp.h, the text that cffi parses.
 *
 * Arrays are float32. Nothing here allocates, and nothing fails: the caller checks. */

/* Attention over a whole sequence of T tokens with H heads of D (dcp_ref/attention.py). q, k and v have `token` floats
 * from one token to the next, and `head` from one head to the next. */
typedef struct {
    size_t T, H, D, token, head;
    float scale;
    const float *q, *k, *v;
    const float *log_i;      /* [T, T] */
    float *y, *log_sum;      /* [T, H, D], [H, T]: what the forward leaves to the backward */
    const float *dy;         /* [T, H, D] */
    float *dq, *dk, *dv;     /* [T, H, D]: dq is set; dk and dv, zeros before, are added to */
    float *dlog_i;           /* [T, T]: set where a key is live */
} dcp_attention;

/* Floats of scratch that dcp_attend_all needs. */
size_t dcp_attention_floats(size_t T, size_t H, size_t D);

/* The forward (y and log_sum), or the backward (dq, dk, dv, dlog_i). */
void dcp_attend_all(const dcp_attention *t, float *scratch, int backward, size_t threads);

/* log I [T, T] of scores s [T, T], and slope [T, T], the derivative of log keep by s: alpha = n + 1, n finite. Tokens
 * are safe while i - j <= delay. (dcp_ref/interaction.py) */
void dcp_log_mask(float *log_i, float *slope, const float *s, size_t T, float n, size_t delay, size_t threads);

/* ds [T, T] from dlog_i [T, T] and that slope. */
void dcp_log_mask_backward(float *ds, const float *dlog_i, const float *slope, size_t T, size_t threads);

/* y [n] = gelu_new of x [n], and slope [n], its derivative. (dcp_ref/layers.py) */
void dcp_gelu_new_saved(float *y, float *slope, const float *x, size_t n, size_t threads);

/* e [rows, n] = exp(x [rows, n] - its row's largest); those largest [rows], and the sums of e [rows]. */
void dcp_exp_rows(float *e, float *largest, float *sum, const float *x, size_t rows, size_t n, size_t threads);
