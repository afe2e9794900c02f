/* A parent sees the CPU time of its children, wherever they were: wait4, waitid, RUSAGE_CHILDREN, times. All of the job moves. */
#include "cpu.h"
static int stop[2], told_rounds[2];

static pid_t worker(long each, pid_t parent)
{
	pid_t child = SYS(fork());
	if (child)
		return child;
	end_with(parent);
	close(stop[1]);
	struct pollfd end = { .fd = stop[0], .events = POLLIN };
	long rounds = 0;
	do {
		work(each);
		rounds++;
	} while (poll(&end, 1, 0) == 0 || rounds < 40);
	SYS(write(told_rounds[1], &rounds, sizeof rounds));
	_exit(7);
}

int main(void)
{
	long each = work_for(0.02), rounds, sum = 0;
	SYS(pipe(stop));
	SYS(pipe(told_rounds));
	pid_t first = worker(each, getpid()), second = worker(each, getpid());
	struct rusage none, usage, children;
	SYS(getrusage(RUSAGE_CHILDREN, &none));
	CHECK(used(&none) == 0, "%.3f s of children before any was waited for", used(&none));
	ready();
	wait_line();
	SYS(getrusage(RUSAGE_CHILDREN, &none));
	CHECK(used(&none) == 0, "%.3f s of children that live", used(&none));
	close(stop[1]);
	for (int i = 0; i < 2; i++) {
		SYS(read(told_rounds[0], &rounds, sizeof rounds));
		sum += rounds;
	}
	int status;
	CHECK(wait4(first, &status, 0, &usage) == first && WEXITSTATUS(status) == 7, "wait4: %s", strerror(errno));
	double of_first = used(&usage);
	siginfo_t info;
	SYS(syscall(SYS_waitid, P_PID, second, &info, WEXITED, &usage));
	CHECK(info.si_pid == second && info.si_status == 7, "waitid: pid %d, status %d", info.si_pid, info.si_status);
	double of_second = used(&usage);
	about("both children", of_first + of_second, sum * 0.02);
	SYS(getrusage(RUSAGE_CHILDREN, &children));
	between("RUSAGE_CHILDREN", used(&children), of_first + of_second - 0.001, of_first + of_second + 0.001);
	struct tms tms;
	times(&tms);
	between("times", (tms.tms_cutime + tms.tms_cstime) / 100.0, of_first + of_second - 2 * TICKS, of_first + of_second);
	PASS();
}
