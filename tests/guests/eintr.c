/* A handler without SA_RESTART makes the blocked read fail with EINTR, one with it does not; neither more nor less. */
#include "guest.h"
static volatile sig_atomic_t runs;
static int ends[2], ack[2];

static void handler(int number)
{
	(void)number;
	runs++;
}

static void act(void *parent)
{
	pid_t to = (pid_t)(intptr_t)parent;
	char c;
	SYS(kill(to, SIGUSR1));
	SYS(read(ack[0], &c, 1));
	usleep(100000);
	SYS(kill(to, SIGUSR2));
	usleep(100000);
	SYS(kill(to, SIGURG));
	usleep(100000);
	CHECK(write(ends[1], "x", 1) == 1, "write");
}

int main(void)
{
	SYS(pipe(ends));
	SYS(pipe(ack));
	struct sigaction action = { .sa_handler = handler };
	SYS(sigaction(SIGUSR1, &action, 0));
	action.sa_flags = SA_RESTART;
	SYS(sigaction(SIGUSR2, &action, 0));
	pid_t child = on_line(act, (void *)(intptr_t)getpid());
	ready();
	char c = 0;
	ssize_t n = read(ends[0], &c, 1);
	CHECK(n == -1 && errno == EINTR && runs == 1, "read gave %zd (%s), %d handlers ran", n, strerror(errno), (int)runs);
	CHECK(write(ack[1], "y", 1) == 1, "write");
	/* SIGUSR2 restarts; SIGURG is ignored by default and must not be noticed at all. */
	n = read(ends[0], &c, 1);
	CHECK(n == 1 && c == 'x' && runs == 2, "second read gave %zd (%s), %d handlers ran", n, strerror(errno), (int)runs);
	reap(child);
	PASS();
}
