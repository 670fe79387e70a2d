/* threads.c - how many threads a kernel may use, and the instruction set. */

#include "common.h"

static int forked; /* OpenMP's threads stay behind in the parent: a child that waits for them waits for ever */

/* Called in each child of a fork. */
static void in_child(void)
{
    forked = 1;
}

/* Called when the extension, or the program, is loaded. */
__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

#ifdef _OPENMP
/* A thread that ends as soon as the gate is unlocked. */
static void *wait_for(void *gate)
{
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* Whether the system lets this process have that number of threads more, all at once. They have ended on return. */
static int can_start(size_t threads)
{
    enum { MOST = 1024 };
    pthread_t started[MOST];
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    size_t n = 0;
    pthread_mutex_lock(&gate);
    while (n < MOST && n < threads && pthread_create(&started[n], NULL, wait_for, &gate) == 0)
        n++;
    pthread_mutex_unlock(&gate);
    for (size_t i = 0; i < n; i++)
        pthread_join(started[i], NULL);
    return n == threads;
}

/* Returns `threads` if the system can start them, or else the number that OpenMP has already. OpenMP ends the process
 * when the system refuses it a thread: so they are tried here first. Each thread of the caller has OpenMP threads of
 * its own. */
static size_t startable(size_t threads)
{
    static _Thread_local size_t proven = 1;
    if (threads > proven && !can_start(threads - 1))
        return proven;
    if (threads > 1)
        proven = threads; /* a smaller team ends the threads that it does not need */
    return threads;
}
#else
/* One thread, however many are wanted. */
static size_t startable(size_t threads)
{
    return threads > 0;
}
#endif

size_t dcp_threads(size_t threads)
{
    const size_t most = forked ? 1 : (size_t)omp_get_max_threads(); /* 1 without OpenMP */
    return startable(threads > 0 && threads < most ? threads : most);
}

size_t threads_for(size_t operations, size_t threads)
{
    return operations < 1 << 18 ? 1 : dcp_threads(threads);
}

int simd_level;
static const char *const level_names[] = {"baseline", "avx2", "avx512f"};

/* The best instruction set that the kernels are compiled for and the processor has. */
static int best_level(void)
{
#ifdef AVX512
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                     __builtin_cpu_supports("bmi2");
    const int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return !avx2 ? 0 : !avx512 ? 1 : 2;
#else
    return 0;
#endif
}

/* Called when the extension, or the program, is loaded. */
__attribute__((constructor)) static void choose_best(void)
{
    simd_level = best_level();
}

const char *dcp_simd_level(void)
{
    return level_names[simd_level];
}

int dcp_simd_choose(const char *level)
{
    for (int i = 0; i <= best_level(); i++)
        if (strcmp(level, level_names[i]) == 0) {
            simd_level = i;
            return DCP_OK;
        }
    return DCP_EINVAL;
}
