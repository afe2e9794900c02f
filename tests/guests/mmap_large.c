/* A large file, written just now, mapped privately wherever the process is: all of it can be read, writes stay here. */
#include "guest.h"
#define PAGE 4096ul
#define STEP (1ul << 20)

int main(void)
{
	const size_t size = 96ul << 20;
	char name[] = "/tmp/mosix-large-XXXXXX";
	int fd = SYS(mkstemp(name));
	SYS(unlink(name));
	SYS(ftruncate(fd, size));
	char block[PAGE];
	for (size_t at = 0; at < size; at += STEP) {
		fill(block, PAGE, at);
		SYS(pwrite(fd, block, PAGE, at));
	}
	ready();
	wait_line();
	char *map = SYS(mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	for (size_t at = 0; at < size; at += STEP) {
		CHECK(verify(map + at, PAGE, at) < 0, "the mapping differs at %#zx", at);
		CHECK(map[at + PAGE] == 0, "the hole at %#zx is not empty", at + PAGE);
	}
	memset(map, 1, PAGE);
	SYS(pread(fd, block, PAGE, 0));
	CHECK(verify(block, PAGE, 0) < 0, "a private write is in the file");
	/* Changed a moment ago, and mapped at once. */
	fill(block, PAGE, 4711);
	SYS(ftruncate(fd, PAGE));
	SYS(pwrite(fd, block, PAGE, 0));
	char *new = SYS(mmap(0, PAGE, PROT_READ, MAP_PRIVATE, fd, 0));
	CHECK(verify(new, PAGE, 4711) < 0, "a file written just now is mapped as it was before");
	PASS();
}
