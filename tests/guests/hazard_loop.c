/* close, fork, exec, read and write under a 1 ms interval timer: no call fails that would not fail without it. argv[1]: rounds. */
#include "guest.h"
#include <sys/time.h>
static volatile sig_atomic_t ticks;

static void tick(int number)
{
	(void)number;
	ticks++;
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 60;
	if (rounds == 0)
		return 17;
	struct sigaction action = { .sa_handler = tick, .sa_flags = SA_RESTART };
	SYS(sigaction(SIGALRM, &action, 0));
	struct itimerval every = { { 0, 1000 }, { 0, 1000 } }, off = { 0 };
	SYS(setitimer(ITIMER_REAL, &every, 0));
	ready();
	char block[4096];
	for (int round = 0; round < rounds || !told(); round++) {
		int ends[2];
		SYS(pipe(ends));
		pid_t child;
		/* fork(2) is restarted by the kernel when a signal comes, always. */
		child = SYS(fork());
		if (child == 0) {
			setitimer(ITIMER_REAL, &off, 0);
			dup2(ends[1], 1);
			close(ends[0]);
			close(ends[1]);
			if (write(1, "hello", 5) != 5)
				_exit(98);
			char *again[] = { argv[0], "0", 0 };
			execv("/proc/self/exe", again);
			_exit(99);
		}
		SYS(close(ends[1]));
		size_t have = 0;
		for (ssize_t n; (n = SYS(read(ends[0], block + have, sizeof block - have))) > 0;)
			have += n;
		CHECK(have == 5 && !memcmp(block, "hello", 5), "the child said %zu bytes", have);
		SYS(close(ends[0]));
		int status;
		CHECK(waitpid(child, &status, 0) == child, "waitpid: %s", strerror(errno));
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 17, "the child's status is %#x", status);
		int null = SYS(open("/dev/zero", O_RDWR));
		for (int i = 0; i < 50; i++) {
			CHECK(read(null, block, sizeof block) == sizeof block, "read: %s", strerror(errno));
			CHECK(write(null, block, sizeof block) == sizeof block, "write: %s", strerror(errno));
			int other = SYS(dup(null));
			CHECK(close(other) == 0, "close: %s", strerror(errno));
		}
		SYS(close(null));
	}
	CHECK(ticks > 0, "no tick came");
	PASS();
}
