/* Time-outs that lie in a socket (SO_RCVTIMEO) are kept by recv, read and accept, and what comes in time comes. */
#include "guest.h"
#include <netinet/in.h>
#include <sys/socket.h>
static int ends[2];

static void act(void *unused)
{
	(void)unused;
	CHECK(write(ends[1], "x", 1) == 1, "write");
}

static void limit(int socket, int milliseconds)
{
	struct timeval time = { milliseconds / 1000, milliseconds % 1000 * 1000 };
	SYS(setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time));
}

int main(void)
{
	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	int quiet[2];
	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, quiet));
	int server = SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(listen(server, 1));
	pid_t child = on_line(act, 0);
	limit(quiet[0], 1500);
	limit(server, 1500);
	ready();
	char byte = 0;
	double begin = now(CLOCK_MONOTONIC);
	ssize_t n = recv(quiet[0], &byte, 1, 0);
	CHECK(n == -1 && errno == EAGAIN, "recv gave %ld: %s", (long)n, strerror(errno));
	check_elapsed("recv", begin, 1.5);
	begin = now(CLOCK_MONOTONIC);
	n = read(quiet[0], &byte, 1);
	CHECK(n == -1 && errno == EAGAIN, "read gave %ld: %s", (long)n, strerror(errno));
	check_elapsed("read", begin, 1.5);
	begin = now(CLOCK_MONOTONIC);
	int got = accept(server, 0, 0);
	CHECK(got == -1 && errno == EAGAIN, "accept gave %d: %s", got, strerror(errno));
	check_elapsed("accept", begin, 1.5);
	struct timeval time;
	socklen_t length = sizeof time;
	SYS(getsockopt(quiet[0], SOL_SOCKET, SO_RCVTIMEO, &time, &length));
	CHECK(time.tv_sec == 1 && time.tv_usec == 500000, "SO_RCVTIMEO became %ld.%06ld", time.tv_sec, time.tv_usec);
	limit(ends[0], 60000);
	n = recv(ends[0], &byte, 1, 0);
	CHECK(n == 1 && byte == 'x', "recv gave %ld, %c: %s", (long)n, byte, strerror(errno));
	reap(child);
	PASS();
}
