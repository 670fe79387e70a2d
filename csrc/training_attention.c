/* training_attention.c - attention over a whole sequence, forward and backward: the twin of dcp_ref/attention.py.
 *
 * Queries go in groups of 32, one a lane. All arrays are transposed, [key][query], so that each product is
 * multiply (t marks a transposed array):
 *
 *     a[key]  = K[key] Qt              p = softmax(a + log I) down the keys         yt[d]  = Vt[d] p
 *     dp[key] = V[key] dYt             da = p (dp - sum_d dY Y)                     dqt[d] = Kt[d] da
 *     dV[key] += p[key] dY             dK[key] += da[key] Q
 *
 * A key that all queries of the group have dropped is left out. The backward computes the weights again. */

#include "training_lanes.h"
#include "training.h"

/* What one head works in. */
typedef struct {
    lanes *a, *da;      /* [T]: weights and their gradient */
    lanes *q, *dy;      /* [group_lanes(D)]: of the group's queries, as load_rows leaves them */
    float *transposed;  /* [D][T]: all values, in the forward; all keys, in the backward */
    float *k, *v;       /* [N][D]: keys and values of the live keys alone */
    float *columns;     /* [D][N]: the live columns of `transposed` */
} head_scratch;

/* The queries first .. first + n - 1, and the N keys that are live for any of them. */
typedef struct {
    size_t first, n, N;
    uint32_t *live; /* [N] */
    lanes *log_i;   /* [N]: log I, transposed */
} query_group;

/* The floats of a head_scratch. */
static size_t head_floats(size_t T, size_t D)
{
    return 2 * (T + group_lanes(D)) * DCP_LANES + 4 * T * D;
}

size_t dcp_attention_floats(size_t T, size_t H, size_t D)
{
    return 3 * T * DCP_LANES + H * head_floats(T, D);
}

/* Head h's part of the scratch, after the 3 T lanes that all heads share. */
static head_scratch scratch_of_head(float *floats, size_t h, size_t T, size_t D)
{
    head_scratch s = {.a = (lanes *)(floats + 3 * T * DCP_LANES + h * head_floats(T, D))};
    s.da = s.a + T;
    s.q = s.da + T;
    s.dy = s.q + group_lanes(D);
    s.transposed = (float *)(s.dy + group_lanes(D));
    s.k = s.transposed + T * D;
    s.v = s.k + T * D;
    s.columns = s.v + T * D;
    return s;
}

/* Finds the live keys of the group and their log I [T, T]. Lanes beyond n keep all keys; their results are not used. */
static void find_live(query_group *g, const float *log_i, size_t T)
{
    g->N = 0;
    for (size_t key = 0; key < g->first + g->n; key++) {
        int any = 0;
        for (size_t j = 0; j < g->n; j++) {
            const float value = key <= g->first + j ? log_i[(g->first + j) * T + key] : -INFINITY;
            g->log_i[g->N][j] = value;
            any |= value != -INFINITY;
        }
        for (size_t j = g->n; j < DCP_LANES; j++)
            g->log_i[g->N][j] = 0;
        g->live[g->N] = (uint32_t)key;
        g->N += (size_t)any;
    }
}

/* y and log_sum of the group's queries, in head h. */
static void forward_group(const dcp_attention *t, const head_scratch *s, const query_group *g, size_t h)
{
    const size_t D = t->D, at = h * t->head;
    const int all = g->N == g->first + g->n; /* keys are live: then they need not be gathered */
    lanes log_sum;
    load_rows(s->q, t->q + at + g->first * t->token, t->token, t->scale, g->n, D);
    if (!all) {
        gather_rows(s->k, t->k + at, t->token, g->live, g->N, D);
        gather_columns(s->columns, s->transposed, t->T, g->live, g->N, D);
    }
    multiply_rows(s->a, all ? t->k + at : s->k, all ? t->token : D, s->q, D, g->N);
    softmax_down(s->a, g->log_i, log_sum, g->N);
    multiply_rows(s->dy, all ? s->transposed : s->columns, all ? t->T : g->N, s->a, g->N, D); /* y, transposed */
    memcpy(t->log_sum + h * t->T + g->first, log_sum, g->n * sizeof(float));
    for (size_t j = 0; j < g->n; j++)
        for (size_t d = 0; d < D; d++)
            t->y[((g->first + j) * t->H + h) * D + d] = s->dy[d][j];
}

/* dq of the group's queries in head h; adds to dk and dv. Leaves da in the scratch. */
static void backward_group(const dcp_attention *t, const head_scratch *s, const query_group *g, size_t h)
{
    const size_t D = t->D, C = t->H * D, at = h * t->head;
    const float *dy = t->dy + g->first * C + h * D, *y = t->y + g->first * C + h * D;
    const int all = g->N == g->first + g->n;
    const size_t stride = all ? t->token : D;
    lanes dot = {0}, log_sum = {0};
    memcpy(log_sum, t->log_sum + h * t->T + g->first, g->n * sizeof(float));
    for (size_t j = 0; j < g->n; j++)
        for (size_t d = 0; d < D; d++)
            dot[j] += dy[j * C + d] * y[j * C + d];
    load_rows(s->q, t->q + at + g->first * t->token, t->token, t->scale, g->n, D);
    load_rows(s->dy, dy, C, 1, g->n, D);
    if (!all) {
        gather_rows(s->k, t->k + at, t->token, g->live, g->N, D);
        gather_rows(s->v, t->v + at, t->token, g->live, g->N, D);
        gather_columns(s->columns, s->transposed, t->T, g->live, g->N, D);
    }
    multiply_rows(s->a, all ? t->k + at : s->k, stride, s->q, D, g->N);
    multiply_rows(s->da, all ? t->v + at : s->v, stride, s->dy, D, g->N);
    softmax_down_backward(s->a, s->da, g->log_i, log_sum, dot, g->N);
    add_product(t->dv + h * D, C, s->a, s->dy + D, g->live, g->N, D);
    add_product(t->dk + h * D, C, s->da, s->q + D, g->live, g->N, D);
    multiply_rows(s->q, all ? s->transposed : s->columns, all ? t->T : g->N, s->da, g->N, D); /* dq, transposed */
    for (size_t j = 0; j < g->n; j++)
        for (size_t d = 0; d < D; d++)
            t->dq[(g->first + j) * C + h * D + d] = s->q[d][j] * t->scale;
}

/* dlog_i of the group's queries: da summed over heads, in their order. */
static void add_heads(const dcp_attention *t, float *scratch, lanes *sum, const query_group *g)
{
    memset(sum, 0, g->N * sizeof *sum);
    for (size_t h = 0; h < t->H; h++) {
        const head_scratch s = scratch_of_head(scratch, h, t->T, t->D);
        for (size_t key = 0; key < g->N; key++)
            for (size_t j = 0; j < DCP_LANES; j++)
                sum[key][j] += s.da[key][j];
    }
    for (size_t j = 0; j < g->n; j++)
        for (size_t key = 0; key < g->N; key++)
            t->dlog_i[(g->first + j) * t->T + g->live[key]] = sum[key][j];
}

void dcp_attend_all(const dcp_attention *t, float *scratch, int backward, size_t threads)
{
    const size_t T = t->T, D = t->D;
    lanes *log_i = (lanes *)scratch, *sum = log_i + T;
    uint32_t *live = (uint32_t *)(sum + T);
    threads = threads_for(2 * T * T * t->H * D, threads);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (size_t h = 0; h < t->H; h++)
        transpose(scratch_of_head(scratch, h, T, D).transposed, (backward ? t->k : t->v) + h * t->head, t->token, T, D);
    for (size_t first = 0; first < T; first += DCP_LANES) {
        const size_t n = T - first < DCP_LANES ? T - first : DCP_LANES;
        query_group g = {.first = first, .n = n, .live = live, .log_i = log_i};
        find_live(&g, t->log_i, T);
#pragma omp parallel for num_threads((int)threads) schedule(static)
        for (size_t h = 0; h < t->H; h++) {
            const head_scratch s = scratch_of_head(scratch, h, T, D);
            if (backward)
                backward_group(t, &s, &g, h);
            else
                forward_group(t, &s, &g, h);
        }
        if (backward)
            add_heads(t, scratch, sum, &g);
    }
}
