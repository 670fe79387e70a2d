/* common.h - what the C files share: includes, panels of numbers, the inner loop over them, e^x. */

#define _GNU_SOURCE /* madvise */
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_max_threads() 1
#endif
#include "kernels.h"
#include "dcp.h"

/* On x86-64 each kernel is compiled for AVX-512, for AVX2 and for neither; elsewhere once, for the compiler's default.
 * simd_level in threads.c says which one is called. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(DCP_BASELINE)
#define AVX2 __attribute__((target("avx2,fma,bmi,bmi2")))
#define AVX512 __attribute__((target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl")))
#endif
#define INLINE static inline __attribute__((always_inline)) /* into each version of a kernel that calls it */

/* Calls the version of a kernel that is for the instruction set in use. KERNEL compiles the body that follows it for
 * each of them, and a function of that name that calls one. */
#ifdef AVX512
#define AT_LEVEL(name, arguments) \
    switch (simd_level) { \
        case 2: \
            name##_avx512 arguments; \
            break; \
        case 1: \
            name##_avx2 arguments; \
            break; \
        default: \
            name##_baseline arguments; \
    }
#define KERNEL(linkage, name, parameters, arguments) \
    INLINE void name##_body parameters; \
    AVX512 static void name##_avx512 parameters { name##_body arguments; } \
    AVX2 static void name##_avx2 parameters { name##_body arguments; } \
    static void name##_baseline parameters { name##_body arguments; } \
    linkage void name parameters { AT_LEVEL(name, arguments) } \
    INLINE void name##_body parameters
#else
#define AT_LEVEL(name, arguments) name##_baseline arguments;
#define KERNEL(linkage, name, parameters, arguments) linkage void name parameters
#endif

typedef float lanes[DCP_LANES];    /* 32 numbers side by side: a row of a panel, or one for each slot of a page */
typedef lanes tile[DCP_TILE_ROWS]; /* sums, scores or weights of up to 12 rows */

/* The byte of a panel where number j of row k stands. Two rows of float16, or four of int8, share a row of 32-bit
 * words, the first row in the low bits. Words are faster to decode than halves and bytes: a vector of words is only
 * shifted. */
INLINE size_t offset(size_t k, size_t j, int type)
{
    const size_t size = (size_t)4 >> type, shared = (size_t)1 << type;
    return (k / shared * DCP_LANES + j) * 4 + k % shared * size;
}

/* The bytes of a panel of this number of rows. */
INLINE size_t panel_bytes(size_t rows, int type)
{
    const size_t shared = (size_t)1 << type;
    return (rows + shared - 1) / shared * 4 * DCP_LANES;
}

/* Number j of row k of a panel, as a float. The bits of a half float, moved to where a float has them, are the number
 * times 2^-112, subnormals too. */
INLINE float lane(const void *panel, size_t k, size_t j, int type)
{
    const size_t size = (size_t)4 >> type, shared = (size_t)1 << type;
    uint32_t bits = ((const uint32_t *)panel)[k / shared * DCP_LANES + j] << 8 * size * (shared - 1 - k % shared);
    if (type == DCP_INT8)
        return (float)((int32_t)bits >> 24);
    bits = type == DCP_FLOAT16 ? (uint32_t)((int32_t)bits >> 3) & 0x8fffe000u : bits;
    float number;
    memcpy(&number, &bits, sizeof number);
    return type == DCP_FLOAT16 ? number * 0x1p112f : number;
}

/* How many of the rows that are left go into one tile. */
INLINE size_t tile_rows(size_t rows)
{
    return rows < DCP_TILE_ROWS ? rows : DCP_TILE_ROWS;
}

/* The sum of 32 numbers, by halves; x is overwritten. */
INLINE float total(lanes x)
{
    for (size_t n = DCP_LANES / 2; n > 0; n /= 2)
        for (size_t j = 0; j < n; j++)
            x[j] += x[j + n];
    return x[0];
}

/* linear.c: sum[r] = x[r, 0..n-1] panel [n, 32], for any number of rows, `stride` floats apart. Each sum adds its n
 * products in order, so that a row's sums do not depend on the other rows. */
void multiply(lanes *sum, const float *x, size_t stride, const void *panel, size_t n, int type, size_t rows);

/* linear.c: sum[r] += x[r, s] panel[s] for the set bits s of live, panel [.., 32]. */
void add_live(lanes *sum, const lanes *x, const void *panel, uint32_t live, int type, size_t rows);

/* threads.c: the instruction set in use: 2 AVX-512, 1 AVX2, 0 neither. */
extern int simd_level;

/* threads.c: the threads for this number of operations; 1 if they are done before another thread has woken up. */
size_t threads_for(size_t operations, size_t threads);

/* slots.c: makes `peak` the pages that are owned now, if they are more. */
void note_peak(dcp_pool *pool);

/* sequence.c: whether a rule of the cache can drop a token, or counts attention in the pages of all. */
int may_drop(const dcp_cache *cache);

/* e^x to 2 units in the last place, 0 below e^-87. Plain arithmetic, so that the compiler vectorises a loop of it. */
INLINE float exp_(float x)
{
    const float low = -87, high = 88, shift = 0x1.8p23f;
    const float at = x < low ? low : x > high ? high : x;
    const float rounded = at * 0x1.715476p+0f + shift, n = rounded - shift; /* at / log 2, to an integer */
    const float f = (at - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;         /* log 2 in two parts */
    const float p = 1 + f * (1 + f * (0.5f + f * (0x1.55548ep-3f + f * (0x1.55545ep-5f + f * (0x1.123bdep-7f +
                    f * 0x1.6db4e8p-10f)))));
    uint32_t bits;
    memcpy(&bits, &rounded, sizeof bits);
    bits = (bits << 23) + 0x3f800000u; /* 2^n: the integer stands in the low bits */
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < low ? 0 : p * power;
}
