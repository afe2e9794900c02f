/* A file mapped shared to be read, on any node, shows the file; through a descriptor that writes it is the file itself. */
#include "guest.h"
#define PAGE 4096ul

static const char *const files[] = { "/bin/sh", "/lib/x86_64-linux-gnu/libc.so.6" };

static void check(const char *name)
{
	int fd = SYS(open(name, O_RDONLY));
	struct stat st;
	SYS(fstat(fd, &st));
	size_t size = st.st_size / 2 / PAGE * PAGE;
	char *map = SYS(mmap(0, size, PROT_READ, MAP_SHARED, fd, PAGE)), page[PAGE];
	for (size_t at = 0; at < size; at += 16 * PAGE) {
		SYS(pread(fd, page, PAGE, at + PAGE));
		CHECK(!memcmp(map + at, page, PAGE), "%s differs at %#zx", name, at + PAGE);
	}
	SYS(munmap(map, size));
	SYS(close(fd));
}

int main(void)
{
	char name[] = "/tmp/mosix-ro-XXXXXX", page[PAGE];
	int fd = SYS(mkstemp(name));
	memset(page, 'a', PAGE);
	SYS(write(fd, page, PAGE));
	/* Kept over all moves. */
	int lib = SYS(open(files[1], O_RDONLY));
	char *kept = SYS(mmap(0, 64 * PAGE, PROT_READ, MAP_SHARED, lib, 0)), bytes[64 * PAGE];
	SYS(pread(lib, bytes, sizeof bytes, 0));
	ready();
	int rounds = 0;
	do {
		check(files[rounds++ % 2]);
		CHECK(!memcmp(kept, bytes, sizeof bytes), "the kept mapping differs");
	} while (!told());
	check(files[0]);
	CHECK(!memcmp(kept, bytes, sizeof bytes), "the kept mapping differs");
	/* What is written to the file is seen, since the descriptor writes. */
	char *map = SYS(mmap(0, PAGE, PROT_READ, MAP_SHARED, fd, 0));
	SYS(pwrite(fd, "b", 1, 7));
	CHECK(map[7] == 'b' && map[8] == 'a', "the write is not seen: %c%c", map[7], map[8]);
	SYS(unlink(name));
	PASS();
}
