/* times(2) has the CPU time of every node, and clock(3) the same; its value is home's time since the boot. */
#include "cpu.h"

int main(void)
{
	long each = work_for(0.02), rounds = 0;
	struct tms tms;
	clock_t begin = times(&tms);
	double began = now(CLOCK_MONOTONIC);
	ready();
	do {
		work(each);
		rounds++;
	} while (!told() || rounds < 60);
	clock_t end = times(&tms);
	double took = now(CLOCK_MONOTONIC) - began;
	double user = tms.tms_utime / 100.0, system = tms.tms_stime / 100.0;
	about("user and system", user + system, rounds * 0.02);
	CHECK(user > system, "user %.2f s, system %.2f s", user, system);
	between("clock()", clock() / (double)CLOCKS_PER_SEC, user + system, user + system + TICKS + COST);
	between("time since the boot", (end - begin) / 100.0, took - 0.5, took + 0.5);
	CHECK(tms.tms_cutime == 0 && tms.tms_cstime == 0, "there are no children");
	PASS();
}
