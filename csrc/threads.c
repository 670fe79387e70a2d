/* threads.c - how many threads a kernel may use, and the instruction set. */

#include "common.h"

static int forked; /* OpenMP's threads stay behind in the parent: waiting for them would be for ever */
static void in_child(void)
{
    forked = 1;
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

#ifdef _OPENMP
static void *wait_for(void *gate)
{
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* As many threads as wanted, or as there are already. OpenMP ends the process when the system refuses it a thread: so they
 * are started here first, all at once, and end again. Each thread of the caller has OpenMP threads of its own. */
static size_t startable(size_t threads)
{
    enum { MOST = 1024 };
    static _Thread_local size_t proven = 1;
    if (threads > proven) {
        pthread_t started[MOST];
        pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
        size_t n = 0;
        pthread_mutex_lock(&gate);
        while (n < MOST && n + 1 < threads && pthread_create(&started[n], NULL, wait_for, &gate) == 0)
            n++;
        pthread_mutex_unlock(&gate);
        for (size_t i = 0; i < n; i++)
            pthread_join(started[i], NULL);
        if (n + 1 < threads)
            return proven;
    }
    if (threads > 1)
        proven = threads; /* a smaller team ends the threads that it does not need */
    return threads;
}
#else
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

size_t dcp_threads_for(size_t operations, size_t threads)
{
    return operations < 1 << 18 ? 1 : dcp_threads(threads);
}

const char *dcp_simd_level(void)
{
    return (const char *[]){"baseline", "avx2", "avx512f"}[SIMD_LEVEL];
}
