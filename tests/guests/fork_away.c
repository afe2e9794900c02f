/* Forks on every node: children have the memory of that moment, talk by pipes, and end with status or signal. */
#include "guest.h"

int main(void)
{
	uint64_t *memory = SYS(mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	ready();
	uint64_t round = 0;
	do {
		round++;
		fill(memory, 1 << 20, round);
		int ends[2];
		SYS(pipe(ends));
		pid_t own = getpid();
		pid_t child = SYS(fork());
		if (child == 0) {
			long wrong = verify(memory, 1 << 20, round);
			uint64_t report[3] = { wrong < 0 ? memory[777] : 0, getppid() == own, getpid() };
			if (write(ends[1], report, sizeof report) != sizeof report)
				_exit(99);
			if (round % 4 == 3)
				raise(SIGKILL);
			_exit(round % 200);
		}
		/* The child must not see this. */
		fill(memory, 1 << 20, ~round);
		SYS(close(ends[1]));
		uint64_t report[3] = { 0 };
		ssize_t n = read(ends[0], report, sizeof report);
		CHECK(n == sizeof report, "the child's report has %zd bytes", n);
		SYS(close(ends[0]));
		CHECK(report[0] == mix(round + 777), "the child's memory was wrong in round %lu", round);
		CHECK(report[1] == 1 && report[2] == (uint64_t)child, "the child has pid %lu here %d", report[2], child);
		int status;
		CHECK(waitpid(child, &status, 0) == child, "waitpid: %s", strerror(errno));
		if (round % 4 == 3)
			CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %#x instead of SIGKILL", status);
		else
			CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (int)(round % 200), "status %#x in round %lu", status, round);
		CHECK(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD, "there is another child");
	} while (!told());
	PASS();
}
