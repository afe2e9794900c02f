/* Makes children where it is, which stay there, each waiting for a byte; tells their numbers; lets them go one by one when told to. */
#include "guest.h"

#define CHILDREN 3

int main(void)
{
	ready();
	wait_line();
	int ends[CHILDREN][2];
	pid_t children[CHILDREN];
	uint64_t *memory = SYS(mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	fill(memory, 1 << 20, 77);
	for (int i = 0; i < CHILDREN; i++) {
		SYS(pipe(ends[i]));
		children[i] = SYS(fork());
		if (children[i] == 0) {
			char byte;
			fill(memory, 1 << 12, i);
			CHECK(read(ends[i][0], &byte, 1) == 1, "read in a child");
			_exit(verify(memory, 1 << 12, i) < 0 ? 10 + i : 99);
		}
	}
	say("MADE %d %d %d\n", (int)children[0], (int)children[1], (int)children[2]);
	wait_line();
	for (int i = 0; i < CHILDREN; i++) {
		int status;
		CHECK(write(ends[i][1], "x", 1) == 1, "write");
		CHECK(waitpid(children[i], &status, 0) == children[i], "waitpid: %s", strerror(errno));
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 10 + i, "status %#x of child %d", status, i);
	}
	CHECK(verify(memory, 1 << 20, 77) < 0, "the children's writes are seen");
	PASS();
}
