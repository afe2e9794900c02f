/* Every kind of private memory keeps its bytes, also where nothing was ever written, while some pages are written all the time. */
#include "guest.h"
#define PAGE 4096ul
#define AREA (2048 * PAGE)
#define HOLE (1ul << 30)

static void same(const char *what, const void *block, size_t bytes, uint64_t seed)
{
	long at = verify(block, bytes, seed);
	CHECK(at < 0, "%s: word %ld is wrong", what, at);
}

int main(void)
{
	char name[] = "/tmp/mosix-guest-XXXXXX";
	char *anon = SYS(mmap(0, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	fill(anon, AREA, 1);
	char *zero = SYS(mmap(0, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));

	/* A private mapping of a file: its first half changed, the second as in the file, the tail beyond the end of the file. */
	int fd = SYS(mkstemp(name));
	char *block = malloc(64 * PAGE);
	fill(block, 64 * PAGE, 2);
	CHECK(write(fd, block, 64 * PAGE) == 64 * PAGE, "write of the file");
	char *file = SYS(mmap(0, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	const char *text = SYS(mmap(0, 64 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0));
	SYS(unlink(name));
	SYS(close(fd));
	fill(file, 32 * PAGE, 3);

	char *none = SYS(mmap(0, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	fill(none, 64 * PAGE, 4);
	SYS(mprotect(none, 64 * PAGE, PROT_NONE));

	char *hole = SYS(mmap(0, HOLE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	/* Room below for it to grow. Nothing may be mapped after it: Linux 6.1 would put that into the room. */
	char *room = SYS(mmap(0, 1024 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	SYS(munmap(room, 1024 * PAGE));
	char *down = SYS(mmap(room + 1000 * PAGE, 16 * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0));
	fill(down, 16 * PAGE, 5);

	for (uint64_t at = 0; at < HOLE; at += HOLE / 64)
		fill(hole + at, PAGE, 100 + at);
	ready();

	uint64_t round = 0;
	do {
		char *page = anon + (round % 2048) * PAGE;
		fill(page, PAGE, 1 + (page - anon) / 8);
		down[round % (16 * PAGE)] ^= 0x55;
		down[round % (16 * PAGE)] ^= 0x55;
		round++;
	} while (round % 64 || !told());

	same("anonymous memory", anon, AREA, 1);
	for (size_t i = 0; i < AREA; i++)
		CHECK(zero[i] == 0, "memory never written has %d at %zu", zero[i], i);
	same("changed half of a private file mapping", file, 32 * PAGE, 3);
	same("unchanged half of a private file mapping", file + 32 * PAGE, 32 * PAGE, 2 + 32 * PAGE / 8);
	same("read-only mapping of a deleted file", text, 64 * PAGE, 2);
	SYS(mprotect(none, 64 * PAGE, PROT_READ));
	same("memory that was PROT_NONE", none, 64 * PAGE, 4);
	down[-PAGE] = 1;
	down[-5 * (long)PAGE] = 2;
	same("growing memory", down, 16 * PAGE, 5);
	CHECK(down[-PAGE] == 1 && down[-5 * (long)PAGE] == 2, "grown memory");
	for (uint64_t at = 0; at < HOLE; at += HOLE / 64) {
		same("page in a hole", hole + at, PAGE, 100 + at);
		CHECK(hole[at + PAGE] == 0, "page beside it");
	}
	PASS();
}
