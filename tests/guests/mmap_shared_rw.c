/* A file mapped shared and writable: what is written there is in the file after msync, munmap, exit and a move, wherever it was written, and
 * what others wrote to other pages stays. argv[1]: one of msync (default), munmap, exit. */
#include "guest.h"
#define PAGE 4096ul
#define PAGES 300ul

static char name[] = "/tmp/mosix-rw-XXXXXX";
static int fd;
static char *map;

static void seen(size_t page, uint64_t seed, const char *when)
{
	char bytes[PAGE];
	CHECK(SYS(pread(fd, bytes, PAGE, page * PAGE)) == (ssize_t)PAGE, "page %zu is not there", page);
	long wrong = verify(bytes, PAGE, seed);
	CHECK(wrong < 0, "%s: word %ld of page %zu is not in the file", when, wrong, page);
}

/* The end of the process that has written: somebody else looks. */
static void at_exit(void)
{
	int pipes[2];
	SYS(pipe(pipes));
	pid_t judge = SYS(fork());
	if (judge == 0) {
		char c;
		close(pipes[1]);
		/* The writer is gone when its end is. */
		while (read(pipes[0], &c, 1) > 0)
			;
		seen(5, 55, "after exit");
		seen(6, 6, "after exit");
		unlink(name);
		PASS();
	}
	close(pipes[0]);
	/* Only this process maps the file from here on: the judge had it by fork. */
	ready();
	wait_line();
	fill(map + 5 * PAGE, PAGE, 55);
	_exit(0);
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "msync";
	fd = SYS(mkstemp(name));
	SYS(ftruncate(fd, PAGES * PAGE));
	map = SYS(mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	for (size_t i = 0; i < PAGES; i++)
		fill(map + i * PAGE, PAGE, i);
	if (!strcmp(how, "exit")) {
		/* Not inherited: the judge reads the file. */
		SYS(madvise(map, PAGES * PAGE, MADV_DONTFORK));
		at_exit();
	}
	ready();
	uint64_t round = 0;
	do {
		/* Somebody writes to the file beside it. */
		char bytes[PAGE];
		fill(bytes, PAGE, 1000 + round);
		SYS(pwrite(fd, bytes, PAGE, 200 * PAGE));
		fill(map + (round % 100) * PAGE, PAGE, 2000 + round);
		if (round % 3 == 0)
			SYS(msync(map, PAGES * PAGE, MS_SYNC));
		else
			SYS(msync(map + (round % 100) * PAGE, PAGE, MS_ASYNC));
		seen(round % 100, 2000 + round, "after msync");
		seen(200, 1000 + round, "beside msync");
		CHECK(verify(map + 150 * PAGE, PAGE, 150) < 0, "the mapping lost page 150");
		round++;
	} while (!told());
	wait_line();
	/* A discarded page of a shared mapping is the file's. */
	fill(map + 120 * PAGE, PAGE, 77);
	SYS(madvise(map + 120 * PAGE, PAGE, MADV_DONTNEED));
	CHECK(verify(map + 120 * PAGE, PAGE, 77) < 0, "MADV_DONTNEED lost page 120");
	/* A part is unmapped, and other memory comes there: it is not the file's. */
	fill(map + 130 * PAGE, PAGE, 88);
	SYS(munmap(map + 130 * PAGE, 2 * PAGE));
	seen(130, 88, "after munmap");
	char *own = SYS(mmap(map + 130 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	fill(own, PAGE, 99);
	SYS(msync(map, 100 * PAGE, MS_SYNC));
	seen(130, 88, "after other memory came there");
	seen(131, 131, "after munmap");
	SYS(munmap(map, PAGES * PAGE));
	seen(120, 77, "after munmap of all");
	SYS(unlink(name));
	PASS();
}
