/* Compute threads on processors of their own. */
#define _GNU_SOURCE
#include <omp.h>
#include <sched.h>
#include <stdint.h>

/* Thread i of the caller's OpenMP team moves to cpus[i] and stays there. Returns how many did. */
int64_t tunedock_bind(const int32_t *cpus, int32_t num) {
    int64_t bound = 0;
#ifdef __linux__
#pragma omp parallel num_threads(num) reduction(+ : bound)
    {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpus[omp_get_thread_num()], &set);
        bound += sched_setaffinity(0, sizeof set, &set) == 0;
    }
#endif
    return bound;
}
