/* A pruned cache in C, without Python: reads the cases of `dcp-ref conformance --export DIR`, writes answers there.
 *
 *     dcp-ref conformance --export cases
 *     cc -std=gnu11 -O2 kernel.c -lm -o kernel && ./kernel cases/case-*.bin
 *     dcp-ref conformance --import cases
 *
 * The layout is the simplest: a token's slot is its position, and a byte says whether it is live. Your kernel takes the
 * place of `token`. Watch for: the comparison, which must be false for a tie and for a NaN.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NEW, FORK, RELEASE, STEP, FEED };                                        /* kinds of operations */
enum { LAYERS, CHANNELS, HEADS, RANK, DELAY, DEPTH, POSITIONS, KV, ROWS };      /* indices into `sizes` */

typedef struct { /* one sequence in one layer; slots are positions */
    int seen, used;
    unsigned char *live;
    float *k, *v, *k_int;
} tokens;

typedef struct { /* numbers of one kind that grow: those of an answer */
    int32_t n;
    int32_t *numbers;
} list;

static void *room(size_t n, size_t size)
{
    void *memory = calloc(n + 1, size);
    if (memory == NULL)
        exit((fprintf(stderr, "no memory\n"), 1));
    return memory;
}

static void append(list *l, int number)
{
    if ((l->n & (l->n - 1)) == 0 && (l->numbers = realloc(l->numbers, (2 * (size_t)l->n + 1) * 4)) == NULL)
        exit((fprintf(stderr, "no memory\n"), 1));
    l->numbers[l->n++] = number;
}

static void *read_array(FILE *file)
{
    int32_t n;
    if (fread(&n, 4, 1, file) != 1 || n < 0)
        exit((fprintf(stderr, "not a case\n"), 1));
    void *array = room((size_t)n, 4);
    if (fread(array, 4, (size_t)n, file) != (size_t)n)
        exit((fprintf(stderr, "the case is too short\n"), 1));
    return array;
}

static void write_array(FILE *file, const void *array, int32_t n)
{
    fwrite(&n, 4, 1, file);
    fwrite(array, 4, (size_t)n, file);
}

/* The next token i of a sequence in a layer. live[j] is 0 already for what the layer before dropped. */
static void token(float *out, tokens *t, const int32_t *size, float beta, float threshold, const float *q,
                  const float *k, const float *v, const float *q_int, const float *k_int, float *weights)
{
    int i = t->seen++, C = size[CHANNELS], D = C / size[HEADS], r = size[RANK];
    for (int j = 0; j < i; j++) {
        float s = 0;
        for (int c = 0; c < r; c++)
            s += q_int[c] * t->k_int[j * r + c];
        s = s / sqrtf((float)r) + beta;
        if (!(s > threshold) && i - j > size[DELAY])
            t->live[j] = 0;
    }
    t->live[i] = 1;
    memcpy(t->k + i * C, k, (size_t)C * 4);
    memcpy(t->v + i * C, v, (size_t)C * 4);
    memcpy(t->k_int + i * r, k_int, (size_t)r * 4);
    for (int first = 0; first < C; first += D) {
        float most = -INFINITY, sum = 0;
        for (int j = 0; j <= i; j++) {
            weights[j] = 0;
            for (int d = first; d < first + D; d++)
                weights[j] += q[d] * t->k[j * C + d] / sqrtf((float)D);
            most = t->live[j] && weights[j] > most ? weights[j] : most;
        }
        memset(out + first, 0, (size_t)D * 4);
        for (int j = 0; j <= i; j++) {
            float p = t->live[j] ? expf(weights[j] - most) : 0;
            sum += p;
            for (int d = first; d < first + D; d++)
                out[d] += p * t->v[j * C + d];
        }
        for (int d = first; d < first + D; d++)
            out[d] /= sum;
    }
}

static void begin(tokens *t, const int32_t *size, const tokens *parent)
{
    size_t P = (size_t)size[POSITIONS], C = (size_t)size[CHANNELS], r = (size_t)size[RANK];
    *t = (tokens){parent ? parent->seen : 0, 1, room(P, 1), room(P * C, 4), room(P * C, 4), room(P * r, 4)};
    if (parent) {
        memcpy(t->live, parent->live, P);
        memcpy(t->k, parent->k, P * C * 4);
        memcpy(t->v, parent->v, P * C * 4);
        memcpy(t->k_int, parent->k_int, P * r * 4);
    }
}

static void answer(const char *name, FILE *file)
{
    int32_t *size = read_array(file), *ops = read_array(file), n_ops = 0;
    float *beta = read_array(file), *x[5]; /* q, k, v, q_int, k_int: [L, N, C or r] */
    for (int a = 0; a < 5; a++)
        x[a] = read_array(file);
    fseek(file, 4 + 4 * (KV + 2), SEEK_SET); /* the number of elements of `ops` */
    if (fread(&n_ops, 4, 1, file) != 1 || size[KV] != 0)
        exit((fprintf(stderr, "%s: keys and values must be float32 here\n", name), 1));
    int L = size[LAYERS], N = size[ROWS], C = size[CHANNELS], r = size[RANK], n = n_ops / 3, row = 0, call = 0;
    tokens *all = room((size_t)(n * L), sizeof *all);
    float *out = room((size_t)(L * N * C), 4), *weights = room((size_t)size[POSITIONS], 4);
    unsigned char *before = room((size_t)size[POSITIONS], 1);
    list dropped = {0}, live = {0};
    for (int o = 0; o < n; o++) {
        int kind = ops[3 * o], a = ops[3 * o + 1], b = ops[3 * o + 2];
        for (int l = 0; l < L; l++) {
            tokens *t = all + a * L + l;
            if (kind == NEW || kind == FORK)
                begin(kind == NEW ? t : all + b * L + l, size, kind == NEW ? NULL : t);
            if (kind == RELEASE)
                t->used = 0;
            for (int i = 0; kind == FEED && i < b; i++) {
                int at = l * N + row + i, now = t->seen;
                memcpy(before, t->live, (size_t)now);
                for (int d = 0; l > 0 && size[DEPTH] && d < dropped.n; d += 3) /* what the layer before dropped */
                    if (dropped.numbers[d] == l - 1 && dropped.numbers[d + 1] == row + i)
                        t->live[dropped.numbers[d + 2]] = 0;
                token(out + at * C, t, size, beta[1 + l], beta[0], x[0] + at * C, x[1] + at * C, x[2] + at * C,
                      x[3] + at * r, x[4] + at * r, weights);
                for (int j = 0; j < now; j++)
                    if (before[j] && !t->live[j]) {
                        append(&dropped, l);
                        append(&dropped, row + i);
                        append(&dropped, j);
                    }
            }
        }
        row += kind == FEED ? b : 0;
        if (kind == STEP || (kind == FEED && o + 1 < n && ops[3 * o + 3] == FEED))
            continue; /* the step has more parts */
        for (int s = 0; s < n * L; s++)
            for (int j = 0; all[s].used && j < all[s].seen; j++)
                if (all[s].live[j]) {
                    append(&live, call);
                    append(&live, s / L);
                    append(&live, s % L);
                    append(&live, j);
                }
        call++;
    }
    char *path = strdup(name), *word = strstr(path, "case-");
    char *to = room(strlen(name) + 8, 1);
    sprintf(to, "%.*sanswer-%s", (int)(word - path), path, word + 5);
    FILE *result = fopen(to, "wb");
    if (result == NULL)
        exit((perror(to), 1));
    write_array(result, out, L * N * C);
    write_array(result, dropped.numbers, dropped.n);
    write_array(result, live.numbers, live.n);
    if (fclose(result) != 0)
        exit((perror(to), 1));
} /* what is allocated goes with the process */

int main(int n, char **names)
{
    for (int i = 1; i < n; i++) {
        FILE *file = fopen(names[i], "rb");
        if (file == NULL || strstr(names[i], "case-") == NULL)
            exit((fprintf(stderr, "%s: give files case-NNNN.bin\n", names[i]), 1));
        answer(names[i], file);
        fclose(file);
    }
    return 0;
}
