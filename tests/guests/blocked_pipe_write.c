/* One write(2) of 1 MB into a pipe whose reader is slow: not short, not interrupted, every byte in its place. */
#include "guest.h"
#define SIZE (1 << 20)
static int ends[2], done[2];

static void reader(pid_t parent)
{
	end_with(parent);
	char *all = malloc(SIZE);
	size_t have = 0;
	SYS(close(ends[1]));
	/* A little at once, so that the writer has come some way when it is moved. */
	for (int i = 0; i < 20; i++) {
		ssize_t n = SYS(read(ends[0], all + have, 5000));
		have += n;
		usleep(5000);
	}
	wait_line();
	while (have < SIZE) {
		ssize_t n = SYS(read(ends[0], all + have, SIZE - have));
		CHECK(n > 0, "the pipe ended at %zu", have);
		have += n;
		usleep(1000);
	}
	long at = verify(all, SIZE, 7);
	CHECK(at < 0, "word %ld came wrong", at);
	char more;
	CHECK(read(ends[0], &more, 1) == 0, "more came than was written");
	_exit(0);
}

int main(void)
{
	SYS(pipe(ends));
	SYS(pipe(done));
	char *all = malloc(SIZE);
	fill(all, SIZE, 7);
	pid_t parent = getpid(), child = SYS(fork());
	if (child == 0)
		reader(parent);
	SYS(close(ends[0]));
	ready();
	ssize_t n = write(ends[1], all, SIZE);
	CHECK(n == SIZE, "write gave %zd: %s", n, n < 0 ? strerror(errno) : "short");
	SYS(close(ends[1]));
	reap(child);
	PASS();
}
