/* Private mappings of files made on any node show the file, keep what is written to them, and fail as at home. */
#include "guest.h"
#define PAGE 4096ul
#define KEPT 8
static const char *const files[] = { "/bin/sh", "/usr/bin/env", "/lib/x86_64-linux-gnu/libc.so.6", "/bin/ls" };
static struct { char *at; size_t size; off_t offset; int file; } kept[KEPT];
static char buffer[1 << 20];

static void check(int i)
{
	int fd = SYS(open(files[kept[i].file], O_RDONLY));
	ssize_t n = SYS(pread(fd, buffer, kept[i].size, kept[i].offset));
	CHECK(kept[i].at[0] == (char)~buffer[0], "what was written to %s is lost", files[kept[i].file]);
	CHECK(!memcmp(kept[i].at + 1, buffer + 1, n - 1), "the mapping of %s at %p differs", files[kept[i].file], kept[i].at);
	for (size_t at = n; at < (n + PAGE - 1) / PAGE * PAGE; at++)
		CHECK(kept[i].at[at] == 0, "%s does not end in zeros", files[kept[i].file]);
	SYS(close(fd));
}

static void refused(int fd, int prot, int error)
{
	void *at = mmap(0, PAGE, prot, MAP_PRIVATE, fd, 0);
	CHECK(at == MAP_FAILED && errno == error, "mmap of descriptor %d: %m instead of %s", fd, strerror(error));
}

int main(void)
{
	ready();
	uint64_t round = 0;
	do {
		uint64_t r = mix(round++);
		int i = r % KEPT;
		if (kept[i].at) {
			check(i);
			SYS(munmap(kept[i].at, kept[i].size));
			kept[i].at = 0;
		} else {
			int file = r >> 8 & 3;
			int fd = SYS(open(files[file], O_RDONLY));
			struct stat st;
			SYS(fstat(fd, &st));
			size_t pages = (st.st_size + PAGE - 1) / PAGE;
			size_t first = (r >> 16) % pages, count = 1 + (r >> 32) % 32;
			if (count > pages - first)
				count = pages - first;
			kept[i].at = SYS(mmap(0, count * PAGE, PROT_READ | PROT_WRITE | (r & 1 << 11 ? PROT_EXEC : 0), MAP_PRIVATE, fd, first * PAGE));
			kept[i].size = count * PAGE;
			kept[i].offset = first * PAGE;
			kept[i].file = file;
			SYS(close(fd));
			kept[i].at[0] = ~kept[i].at[0];
		}
	} while (round % 8 || !told());
	for (int i = 0; i < KEPT; i++)
		if (kept[i].at)
			check(i);
	refused(99, PROT_READ, EBADF);
	int out = SYS(open("/dev/null", O_WRONLY));
	refused(out, PROT_READ, EACCES);
	refused(SYS(open("/", O_RDONLY)), PROT_READ, ENODEV);
	PASS();
}
