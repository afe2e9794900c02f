/* Clocks go on through moves: never back, at the speed of real time, and the vDSO agrees with the system call. */
#include "guest.h"
#include <sys/time.h>

static double raw(clockid_t clock)
{
	struct timespec t;
	SYS(syscall(SYS_clock_gettime, clock, &t));
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(void)
{
	clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME, CLOCK_MONOTONIC_COARSE };
	double last[4], offset[4];
	for (int i = 0; i < 4; i++) {
		last[i] = now(clocks[i]);
		offset[i] = last[i] - now(CLOCK_MONOTONIC);
	}
	ready();
	long rounds = 0;
	do {
		for (int i = 0; i < 4; i++) {
			double t = now(clocks[i]);
			CHECK(t >= last[i], "clock %d went back by %.6f s", clocks[i], last[i] - t);
			last[i] = t;
		}
		if (rounds % 1000 == 0) {
			for (int i = 0; i < 4; i++) {
				/* A move may fall between two readings: only a difference that stays is one. */
				double apart = 1;
				for (int try = 0; try < 5 && (apart > 0.02 || apart < -0.02); try++)
					apart = now(clocks[i]) - raw(clocks[i]);
				CHECK(apart < 0.02 && apart > -0.02, "clock %d: vDSO and system call differ by %.6f s", clocks[i], apart);
				apart = 1;
				/* Where the machine's tick is late, the coarse clock stands meanwhile. */
				for (int try = 0; try < 20 && (apart > 0.05 || apart < -0.05); try++) {
					if (try > 4)
						poll(0, 0, 20);
					apart = now(clocks[i]) - now(CLOCK_MONOTONIC) - offset[i];
				}
				CHECK(apart < 0.05 && apart > -0.05, "clock %d jumped by %.6f s", clocks[i], apart);
			}
			struct timeval tv;
			gettimeofday(&tv, 0);
			double apart = tv.tv_sec + tv.tv_usec / 1e6 - now(CLOCK_REALTIME);
			CHECK(apart < 1 && apart > -1, "gettimeofday differs by %.3f s", apart);
			CHECK(labs((long)(time(0) - tv.tv_sec)) <= 1, "time(2) differs");
		}
		rounds++;
	} while (rounds % 1000 || !told());
	PASS();
}
