/* CPU time that a guest burns and reads. Tolerances are in CPU time: what a moved process costs the kernel, not what the machine is late. */
#ifndef CPU_H
#define CPU_H
#include "guest.h"
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/times.h>

/* What moves, and the calls of a guest itself, may cost beside what it burns, in seconds. */
#define COST 0.5
/* A tick of times(2), and as much again for what each side rounds down. */
#define TICKS 0.03

/* Computes a fixed amount; `work_for` finds how much one second of CPU is. */
static inline void work(long rounds)
{
	uint64_t x = 1;
	for (long i = 0; i < rounds; i++)
		x = mix(x);
	CHECK(x != 0, "x");
}

static inline long work_for(double seconds)
{
	long rounds = 1 << 20;
	for (;; rounds *= 2) {
		double begin = now(CLOCK_THREAD_CPUTIME_ID);
		work(rounds);
		double took = now(CLOCK_THREAD_CPUTIME_ID) - begin;
		if (took > 0.05)
			return rounds / took * seconds;
	}
}

static inline double seconds(struct timeval time)
{
	return time.tv_sec + time.tv_usec / 1e6;
}

static inline double used(const struct rusage *usage)
{
	return seconds(usage->ru_utime) + seconds(usage->ru_stime);
}

/* Whether a reading is what was used: not less, and little more. */
static inline void between(const char *what, double got, double least, double most)
{
	CHECK(got >= least && got <= most, "%s: %.3f s, not %.3f to %.3f", what, got, least, most);
}

/* Whether a reading is what a known amount of work takes: caches and siblings make it more, an idle machine makes it less. */
static inline void about(const char *what, double got, double expected)
{
	between(what, got, expected * 0.5, expected * 2 + COST);
}
#endif
