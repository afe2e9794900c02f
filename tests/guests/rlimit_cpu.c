/* RLIMIT_CPU counts the CPU time of every node: `soft` is told by SIGXCPU, `soft-default` ends by it, `hard` by SIGKILL. With `late` the limit
   is set after the moves. */
#include "cpu.h"
static volatile sig_atomic_t told_off;

static void over(int number)
{
	(void)number;
	told_off = 1;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "soft";
	int late = argc > 2;
	struct rlimit limit = { 1, strcmp(what, "hard") ? 60 : 1 }, seen;
	if (!strcmp(what, "soft"))
		signal(SIGXCPU, over);
	long each = work_for(0.02), rounds = 0;
	if (!late)
		SYS(setrlimit(RLIMIT_CPU, &limit));
	ready();
	/* A part of it before, but not all. */
	for (; rounds < 15; rounds++)
		work(each);
	wait_line();
	if (late)
		SYS(setrlimit(RLIMIT_CPU, &limit));
	SYS(getrlimit(RLIMIT_CPU, &seen));
	CHECK(seen.rlim_cur == limit.rlim_cur && seen.rlim_max == limit.rlim_max, "limits %ld, %ld", (long)seen.rlim_cur,
	      (long)seen.rlim_max);
	for (; !told_off && rounds < 500; rounds++)
		work(each);
	CHECK(told_off, "no SIGXCPU after %.1f s", rounds * 0.02);
	/* Limits are whole seconds: on each host it comes late by less than one. */
	about("CPU time until SIGXCPU", rounds * 0.02, 1.5);
	PASS();
}
