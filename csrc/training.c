/* training.c - attention over a whole sequence, forward and backward, for training: the twin of attention.py.
 *
 * Queries go in blocks of 32, one a lane. All is kept turned, [key][query], so that each product is dcp_multiply:
 *
 *     a[key]  = K[key] Qt              p = softmax(a + log I) down the keys         yt[d]  = Vt[d] p
 *     dp[key] = V[key] dYt             da = p (dp - sum_d dY Y)                     dqt[d] = Kt[d] da
 *     dV[key] += p[key] dY             dK[key] += da[key] Q
 *
 * Keys that the whole block has dropped are left out of it, and the weights are computed anew on the way back. */

#include "common.h"
#include "training.h"

typedef float lanes_of[DCP_LANES];

/* What one head works in. */
typedef struct {
    lanes_of *a, *da;           /* [T]: weights and their gradient */
    lanes_of *q, *dy;           /* [D], then [D / 32][32]: the block's queries, turned, and in panels of 32 columns */
    float *turned;              /* [D][T]: all values, turned; on the way back, all keys */
    float *k, *v, *live_turned; /* [N][D] x 2, [D][N]: of the live keys alone */
} scratch_of;

static size_t block_lanes(size_t D)
{
    return D + (D + DCP_LANES - 1) / DCP_LANES * DCP_LANES;
}

static size_t head_floats(size_t T, size_t D)
{
    return 2 * (T + block_lanes(D)) * DCP_LANES + 4 * T * D;
}

size_t dcp_attention_floats(size_t T, size_t H, size_t D)
{
    return 3 * T * DCP_LANES + H * head_floats(T, D);
}

static scratch_of scratch_at(float *floats, size_t h, size_t T, size_t D)
{
    scratch_of s = {.a = (lanes_of *)(floats + 3 * T * DCP_LANES + h * head_floats(T, D))};
    s.da = s.a + T;
    s.q = s.da + T;
    s.dy = s.q + block_lanes(D);
    s.turned = (float *)(s.dy + block_lanes(D));
    s.k = s.turned + T * D;
    s.v = s.k + T * D;
    s.live_turned = s.v + T * D;
    return s;
}

/* The keys that some of the n queries from `first` keep, and their log I, turned. Lanes beyond n keep all, to no effect. */
static size_t live_keys(uint32_t *live, lanes_of *log_t, const float *log_i, size_t T, size_t first, size_t n)
{
    size_t N = 0;
    for (size_t key = 0; key < first + n; key++) {
        int any = 0;
        for (size_t j = 0; j < n; j++) {
            const float value = key <= first + j ? log_i[(first + j) * T + key] : -INFINITY;
            log_t[N][j] = value;
            any |= value != -INFINITY;
        }
        for (size_t j = n; j < DCP_LANES; j++)
            log_t[N][j] = 0;
        live[N] = (uint32_t)key;
        N += (size_t)any;
    }
    return N;
}

/* A matrix [n][D] as [D][n]. */
CLONES void dcp_turn(float *turned, const float *x, size_t stride, size_t n, size_t D)
{
    for (size_t d = 0; d < D; d++)
        for (size_t i = 0; i < n; i++)
            turned[d * n + i] = x[i * stride + d];
}

/* Of x [n][stride], the first D numbers of the live rows; and of turned [D][T], the live columns. */
static void gather(float *rows, const float *x, size_t stride, const uint32_t *live, size_t N, size_t D)
{
    for (size_t i = 0; i < N; i++)
        memcpy(rows + i * D, x + live[i] * stride, D * sizeof *rows);
}

CLONES void dcp_gather_turned(float *columns, const float *turned, size_t T, const uint32_t *live, size_t N, size_t D)
{
    for (size_t d = 0; d < D; d++)
        for (size_t i = 0; i < N; i++)
            columns[d * N + i] = turned[d * T + live[i]];
}

/* n rows of D numbers times `factor`: turned, [D][32], and in panels of 32 columns, [D / 32][32][32], padded with 0. */
static void load_block(lanes_of *turned, const float *x, size_t stride, float factor, size_t n, size_t D)
{
    lanes_of *panel = turned + D;
    memset(turned, 0, block_lanes(D) * sizeof *turned);
    for (size_t j = 0; j < n; j++)
        for (size_t d = 0; d < D; d++) {
            turned[d][j] = x[j * stride + d] * factor;
            panel[d / DCP_LANES * DCP_LANES + j][d % DCP_LANES] = turned[d][j];
        }
}

/* y[r] = x[r, 0..n-1] panel, for any number of rows. */
static void product(lanes_of *y, const float *x, size_t stride, const lanes_of *panel, size_t n, size_t rows)
{
    for (size_t row = 0, tile; row < rows; row += tile) {
        tile = tile_rows(rows - row);
        dcp_multiply(y + row, x + row * stride, stride, panel, n, DCP_FLOAT32, tile);
    }
}

CLONES void dcp_add_tile(float *dx, size_t stride, const dcp_tile sum, const uint32_t *live, size_t rows, size_t width)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t d = 0; d < width; d++)
            dx[live[r] * stride + d] += sum[r][d];
}

/* dx[live key] += p[key] panel, over the 32 queries. */
static void add_product(float *dx, size_t stride, const lanes_of *p, const lanes_of *panel, const uint32_t *live, size_t N,
                        size_t D)
{
    dcp_tile sum;
    for (size_t d = 0; d < D; d += DCP_LANES, panel += DCP_LANES)
        for (size_t key = 0, rows; key < N; key += rows) {
            rows = tile_rows(N - key);
            dcp_multiply(sum, p[key], DCP_LANES, panel, DCP_LANES, DCP_FLOAT32, rows);
            dcp_add_tile(dx + d, stride, sum, live + key, rows, D - d < DCP_LANES ? D - d : DCP_LANES);
        }
}

/* a = exp(a + log I - its sum's logarithm), over the keys; log_sum receives that logarithm. */
CLONES void dcp_softmax_lanes(float (*a)[DCP_LANES], const float (*log_t)[DCP_LANES], float *log_sum, size_t N)
{
    lanes_of most, sum = {0};
    for (size_t j = 0; j < DCP_LANES; j++)
        most[j] = -INFINITY;
    for (size_t key = 0; key < N; key++)
        for (size_t j = 0; j < DCP_LANES; j++) {
            a[key][j] += log_t[key][j];
            most[j] = a[key][j] > most[j] ? a[key][j] : most[j];
        }
    for (size_t key = 0; key < N; key++)
        for (size_t j = 0; j < DCP_LANES; j++) {
            a[key][j] = exp_(a[key][j] - most[j]);
            sum[j] += a[key][j];
        }
    for (size_t j = 0; j < DCP_LANES; j++) {
        log_sum[j] = most[j] + logf(sum[j]);
        sum[j] = 1 / sum[j];
    }
    for (size_t key = 0; key < N; key++)
        for (size_t j = 0; j < DCP_LANES; j++)
            a[key][j] *= sum[j];
}

/* a becomes p = exp(a + log I - log_sum), da = p (da - dot). */
CLONES void dcp_softmax_lanes_backward(float (*a)[DCP_LANES], float (*da)[DCP_LANES], const float (*log_t)[DCP_LANES],
                                       const float *log_sum, const float *dot, size_t N)
{
    for (size_t key = 0; key < N; key++)
        for (size_t j = 0; j < DCP_LANES; j++) {
            a[key][j] = exp_(a[key][j] + log_t[key][j] - log_sum[j]);
            da[key][j] = a[key][j] * (da[key][j] - dot[j]);
        }
}

/* One head's block of n queries from `first`, over N live keys. */
typedef struct {
    size_t h, first, n, N;
    const uint32_t *live;
    const lanes_of *log_t;
} block_of;

static void forward_block(const dcp_attention *t, const scratch_of *s, const block_of *b)
{
    const size_t D = t->D, at = b->h * t->head;
    const int all = b->N == b->first + b->n;
    lanes_of log_sum;
    load_block(s->q, t->q + at + b->first * t->token, t->token, t->scale, b->n, D);
    if (!all) {
        gather(s->k, t->k + at, t->token, b->live, b->N, D);
        dcp_gather_turned(s->live_turned, s->turned, t->T, b->live, b->N, D);
    }
    product(s->a, all ? t->k + at : s->k, all ? t->token : D, s->q, D, b->N);
    dcp_softmax_lanes(s->a, b->log_t, log_sum, b->N);
    product(s->dy, all ? s->turned : s->live_turned, all ? t->T : b->N, s->a, b->N, D); /* y, turned */
    memcpy(t->log_sum + b->h * t->T + b->first, log_sum, b->n * sizeof(float));
    for (size_t j = 0; j < b->n; j++)
        for (size_t d = 0; d < D; d++)
            t->y[((b->first + j) * t->H + b->h) * D + d] = s->dy[d][j];
}

static void backward_block(const dcp_attention *t, const scratch_of *s, const block_of *b)
{
    const size_t D = t->D, C = t->H * D, at = b->h * t->head;
    const float *dy = t->dy + b->first * C + b->h * D, *y = t->y + b->first * C + b->h * D;
    const int all = b->N == b->first + b->n;
    const size_t stride = all ? t->token : D;
    lanes_of dot = {0}, log_sum = {0};
    memcpy(log_sum, t->log_sum + b->h * t->T + b->first, b->n * sizeof(float));
    for (size_t j = 0; j < b->n; j++)
        for (size_t d = 0; d < D; d++)
            dot[j] += dy[j * C + d] * y[j * C + d];
    load_block(s->q, t->q + at + b->first * t->token, t->token, t->scale, b->n, D);
    load_block(s->dy, dy, C, 1, b->n, D);
    if (!all) {
        gather(s->k, t->k + at, t->token, b->live, b->N, D);
        gather(s->v, t->v + at, t->token, b->live, b->N, D);
        dcp_gather_turned(s->live_turned, s->turned, t->T, b->live, b->N, D);
    }
    product(s->a, all ? t->k + at : s->k, stride, s->q, D, b->N);
    product(s->da, all ? t->v + at : s->v, stride, s->dy, D, b->N);
    dcp_softmax_lanes_backward(s->a, s->da, b->log_t, log_sum, dot, b->N);
    add_product(t->dv + b->h * D, C, s->a, s->dy + D, b->live, b->N, D);
    add_product(t->dk + b->h * D, C, s->da, s->q + D, b->live, b->N, D);
    product(s->q, all ? s->turned : s->live_turned, all ? t->T : b->N, s->da, b->N, D); /* dq, turned: q is done with */
    for (size_t j = 0; j < b->n; j++)
        for (size_t d = 0; d < D; d++)
            t->dq[(b->first + j) * C + b->h * D + d] = s->q[d][j] * t->scale;
}

/* dlog I of a block: the sum over heads, in their order. */
static void add_heads(const dcp_attention *t, float *scratch, lanes_of *sum, const block_of *b)
{
    memset(sum, 0, b->N * sizeof *sum);
    for (size_t h = 0; h < t->H; h++) {
        const scratch_of s = scratch_at(scratch, h, t->T, t->D);
        for (size_t key = 0; key < b->N; key++)
            for (size_t j = 0; j < DCP_LANES; j++)
                sum[key][j] += s.da[key][j];
    }
    for (size_t j = 0; j < b->n; j++)
        for (size_t key = 0; key < b->N; key++)
            t->dlog_i[(b->first + j) * t->T + b->live[key]] = sum[key][j];
}

void dcp_attend_all(const dcp_attention *t, float *scratch, int backward, size_t threads)
{
    const size_t T = t->T;
    lanes_of *log_t = (lanes_of *)scratch, *sum = log_t + T;
    uint32_t *live = (uint32_t *)(sum + T);
    threads = dcp_threads_for(2 * T * T * t->H * t->D, threads);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (size_t h = 0; h < t->H; h++)
        dcp_turn(scratch_at(scratch, h, T, t->D).turned, (backward ? t->k : t->v) + h * t->head, t->token, T, t->D);
    for (size_t first = 0; first < T; first += DCP_LANES) {
        block_of block = {.first = first, .n = T - first < DCP_LANES ? T - first : DCP_LANES, .live = live, .log_t = log_t};
        block.N = live_keys(live, log_t, t->log_i, T, first, block.n);
#pragma omp parallel for num_threads((int)threads) schedule(static)
        for (size_t h = 0; h < t->H; h++) {
            const scratch_of s = scratch_at(scratch, h, T, t->D);
            block_of b = block;
            b.h = h;
            (backward ? backward_block : forward_block)(t, &s, &b);
        }
        if (backward)
            add_heads(t, scratch, sum, &block);
    }
}

/* ---- What is dropped: interaction.py's log_mask. ---- */

/* The natural logarithm of a normal x > 0 to 2 units in the last place: of m and 2^e, m between sqrt(1/2) and sqrt(2), by
 * f - f^2 / 2 + f^3 times a polynomial fitted to have the least largest error. */
INLINE float log_(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const int32_t e = (int32_t)(bits - 0x3f3504f3u) >> 23;
    bits -= (uint32_t)e << 23;
    float m;
    memcpy(&m, &bits, sizeof m);
    const float f = m - 1, n = (float)e;
    const float tail = f * f * (f * (0x1.555552p-2f + f * (-0x1.0000c8p-2f + f * (0x1.99a14cp-3f + f * (-0x1.54d54ep-3f +
                       f * (0x1.22dc4cp-3f + f * (-0x1.09abe4p-3f + f * (0x1.04591ap-3f + f * -0x1.4bd7p-4f))))))) - 0.5f);
    return n * 0x1.62e4p-1f + (f + (tail + n * 0x1.7f7d1cp-20f));
}

/* log(1 + y) for y > -1; what rounding 1 + y loses is added to first order. */
INLINE float log1p_(float y)
{
    const float u = 1 + y;
    return log_(u) + (y - (u - 1)) / u;
}

/* e^x - 1 for x <= 0; e is rounded, and so x / log e is what e - 1 lacks. */
INLINE float expm1_(float x)
{
    const float e = exp_(x), less_one = (e - 1) * (x / log_(e));
    return e == 1 ? x : e > 0 ? less_one : -1;
}

/* One Newton step for x = log(p / (1 - p)) where n < 1, p the smaller side. */
INLINE float step_odds(float x, float c, float n)
{
    const float e = exp_(x), p = e / (1 + e), power = c * exp_(n * log1p_(e));
    const float ratio = power < 0x1.fffffep-1f ? power : 0x1.fffffep-1f; /* below 1: its log1p(-ratio) is a number */
    return x - (x - log1p_(-ratio) / n) / (1 + p * ratio / (1 - ratio));
}

/* One for p itself where n >= 1; above 0, where log p is a number. */
INLINE float step_power(float p, float c, float n)
{
    const float p_n = exp_(n * log_(p)), base = c + p_n, log_q = log_(base) / n;
    const float next = p - (p + expm1_(log_q)) / (1 + p_n * exp_(log_q) / (base * p));
    return next > 0x1p-100f ? next : 0x1p-100f;
}

/* log keep and its derivative by s, where c = n |s| < 1, n = alpha - 1; anything elsewhere. Solved as in sigmoid.py, for
 * the same two unknowns, but in float32 throughout: as exact as s is. */
INLINE void gate(lanes_of log_keep, lanes_of slope, const lanes_of s, const float n)
{
    const float twice = exp_(n * 0x1.62e43p-1f) - 1;
    lanes_of c, x, log_q;
    for (size_t j = 0; j < DCP_LANES; j++)
        c[j] = n * fabsf(s[j]);
    if (n == 0)
        for (size_t j = 0; j < DCP_LANES; j++)
            x[j] = -fabsf(s[j]);
    else if (n < 1) {
        for (size_t j = 0; j < DCP_LANES; j++)
            x[j] = log1p_(-c[j] * (1 + twice) / (1 + twice * c[j])) / n;
        for (int step = 0; step < 4; step++)
            for (size_t j = 0; j < DCP_LANES; j++)
                x[j] = step_odds(x[j], c[j], n);
    } else {
        for (size_t j = 0; j < DCP_LANES; j++) {
            c[j] = c[j] > 0x1p-100f ? c[j] : 0x1p-100f;
            const float start = -expm1_(log_(c[j]) / n);
            x[j] = start < 0.5f ? start : 0.5f;
        }
        for (int step = 0; step < 4; step++)
            for (size_t j = 0; j < DCP_LANES; j++)
                x[j] = step_power(x[j], c[j], n);
    }
    for (size_t j = 0; j < DCP_LANES; j++) /* x becomes log p */
        if (n < 1) {
            log_q[j] = -log1p_(exp_(x[j]));
            x[j] += log_q[j];
        } else {
            log_q[j] = log1p_(-x[j]);
            x[j] = log_(x[j]);
        }
    for (size_t j = 0; j < DCP_LANES; j++) {
        const float log_k = s[j] > 0 ? log_q[j] : x[j], log_other = s[j] > 0 ? x[j] : log_q[j];
        log_keep[j] = log_k + (s[j] - s[j]); /* NaN stays NaN */
        /* d log keep / ds = 1 / (keep^(alpha - 1) + keep (1 - keep)^(alpha - 2)) */
        slope[j] = 1 / (exp_(n * log_k) + exp_(log_k + (n - 1) * log_other));
    }
}

/* Up to 32 columns of the mask, from `first`: down the queries, until all are dropped. */
CLONES void dcp_log_mask_columns(float *log_i, float *slope, const float *s, size_t T, size_t first, float n, size_t delay)
{
    const size_t width = T - first < DCP_LANES ? T - first : DCP_LANES;
    lanes_of sum = {0};
    for (size_t i = 0; i < T; i++) {
        lanes_of score, log_keep, step;
        int inside = 0;
        for (size_t j = 0; j < DCP_LANES; j++)
            score[j] = j < width && i > first + j + delay ? s[i * T + first + j] : INFINITY; /* which keeps */
        for (size_t j = 0; j < DCP_LANES; j++)
            inside |= !(n * fabsf(score[j]) >= 1) & (sum[j] != -INFINITY);
        if (inside)
            gate(log_keep, step, score, n);
        for (size_t j = 0; j < width; j++) {
            const int saturated = !inside | (n * fabsf(score[j]) >= 1) | (fabsf(score[j]) == INFINITY); /* n may be 0 */
            const float sum_now = sum[j] + (saturated ? (score[j] > 0 ? 0 : -INFINITY) : log_keep[j]);
            sum[j] = sum[j] == -INFINITY ? sum[j] : sum_now; /* gone for good: a NaN that comes later changes nothing */
            log_i[i * T + first + j] = sum[j];
            slope[i * T + first + j] = saturated | (score[j] != score[j]) ? 0 : step[j];
        }
    }
}

CLONES void dcp_log_mask_columns_backward(float *ds, const float *dlog_i, const float *slope, size_t T, size_t first)
{
    const size_t width = T - first < DCP_LANES ? T - first : DCP_LANES;
    float sum[DCP_LANES] = {0};
    for (size_t i = T; i-- > 0;)
        for (size_t j = 0; j < width; j++) {
            sum[j] += dlog_i[i * T + first + j];
            ds[i * T + first + j] = sum[j] * slope[i * T + first + j];
        }
}

void dcp_log_mask(float *log_i, float *slope, const float *s, size_t T, float n, size_t delay, size_t threads)
{
    threads = dcp_threads_for(16 * T * T, threads);
#pragma omp parallel for num_threads((int)threads) schedule(static, 1)
    for (size_t first = 0; first < T; first += DCP_LANES)
        dcp_log_mask_columns(log_i, slope, s, T, first, n, delay);
}

void dcp_log_mask_backward(float *ds, const float *dlog_i, const float *slope, size_t T, size_t threads)
{
    threads = dcp_threads_for(4 * T * T, threads);
#pragma omp parallel for num_threads((int)threads) schedule(static, 1)
    for (size_t first = 0; first < T; first += DCP_LANES)
        dcp_log_mask_columns_backward(ds, dlog_i, slope, T, first);
}

/* ---- Element by element: layers.py's activation and cross_entropy. ---- */

/* x g with g = 1 / (1 + e^(-2 a x (1 + b x^2))), and its derivative g + x g (1 - g) 2 a (1 + 3 b x^2). */
CLONES void dcp_gelu_new_slope(float *y, float *slope, const float *x, size_t n)
{
    const float twice_a = 0x1.988454p+0f, b = 0.044715f;
    for (size_t i = 0; i < n; i++) {
        const float near = x[i] < -20 ? -20 : x[i] > 20 ? 20 : x[i], square = near * near; /* g is 0 or 1 beyond */
        const float g = 1 / (1 + exp_(-twice_a * near * (1 + b * square)));
        y[i] = (x[i] > 20 ? x[i] : near) * g;
        slope[i] = g + near * g * (1 - g) * twice_a * (1 + 3 * b * square);
    }
}

void dcp_gelu_new_saved(float *y, float *slope, const float *x, size_t n, size_t threads)
{
    const size_t piece = 1 << 12, pieces = (n + piece - 1) / piece;
    threads = dcp_threads_for(32 * n, threads);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (size_t p = 0; p < pieces; p++)
        dcp_gelu_new_slope(y + p * piece, slope + p * piece, x + p * piece, n - p * piece < piece ? n - p * piece : piece);
}

/* e = exp(x - the largest x); and that, and the sum. */
CLONES void dcp_exp_row(float *e, float *largest, float *total, const float *x, size_t n)
{
    lanes_of most, sum = {0};
    size_t i = 0;
    for (size_t j = 0; j < DCP_LANES; j++)
        most[j] = -INFINITY;
    for (; i + DCP_LANES <= n; i += DCP_LANES)
        for (size_t j = 0; j < DCP_LANES; j++)
            most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
    for (size_t j = 0; i + j < n; j++)
        most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
    for (size_t j = 1; j < DCP_LANES; j++)
        most[0] = most[j] > most[0] ? most[j] : most[0];
    for (i = 0; i + DCP_LANES <= n; i += DCP_LANES)
        for (size_t j = 0; j < DCP_LANES; j++) {
            e[i + j] = exp_(x[i + j] - most[0]);
            sum[j] += e[i + j];
        }
    for (size_t j = 0; i + j < n; j++) {
        e[i + j] = exp_(x[i + j] - most[0]);
        sum[j] += e[i + j];
    }
    for (size_t j = 1; j < DCP_LANES; j++)
        sum[0] += sum[j];
    *largest = most[0];
    *total = sum[0];
}

void dcp_exp_rows(float *e, float *largest, float *sum, const float *x, size_t rows, size_t n, size_t threads)
{
    threads = dcp_threads_for(16 * rows * n, threads);
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (size_t r = 0; r < rows; r++)
        dcp_exp_row(e + r * n, largest + r, sum + r, x + r * n, n);
}
