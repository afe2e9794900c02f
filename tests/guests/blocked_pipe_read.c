/* Blocked in read(2) of an empty pipe; gets all bytes that come in the end, and no EINTR. */
#include "guest.h"
static int ends[2];

static void act(void *unused)
{
	(void)unused;
	CHECK(write(ends[1], "twelve bytes", 12) == 12, "write");
}

int main(void)
{
	SYS(pipe(ends));
	pid_t child = on_line(act, 0);
	SYS(close(ends[1]));
	ready();
	char buffer[100] = "";
	ssize_t n = read(ends[0], buffer, sizeof buffer);
	CHECK(n == 12 && !memcmp(buffer, "twelve bytes", 12), "read gave %zd: %s", n, n < 0 ? strerror(errno) : buffer);
	n = read(ends[0], buffer, sizeof buffer);
	CHECK(n == 0, "second read gave %zd", n);
	reap(child);
	PASS();
}
