/* Writes and reads a file in blocks of 3 MB and of 1 byte, by read, pread, readv and O_APPEND; its bytes are right. */
#include "guest.h"
#include <sys/uio.h>
#define BLOCK (3 << 20)

int main(void)
{
	char name[] = "/tmp/mosix-guest-XXXXXX";
	int fd = SYS(mkstemp(name));
	SYS(unlink(name));
	char *out = malloc(BLOCK), *in = malloc(BLOCK);
	fill(out, BLOCK, 1);
	ready();
	uint64_t round = 0;
	do {
		out[round % BLOCK] ^= 1;
		SYS(ftruncate(fd, 0));
		SYS(lseek(fd, 0, SEEK_SET));
		CHECK(write(fd, out, BLOCK) == BLOCK, "write: %s", strerror(errno));
		for (int i = 0; i < 64; i++)
			CHECK(write(fd, out + i, 1) == 1, "write of a byte: %s", strerror(errno));
		memset(in, 0, BLOCK);
		CHECK(pread(fd, in, BLOCK, 0) == BLOCK, "pread: %s", strerror(errno));
		CHECK(!memcmp(in, out, BLOCK), "pread brought other bytes");
		memset(in, 0, BLOCK);
		struct iovec parts[] = { { in, 1 }, { in + 1, 70000 }, { in + 70001, BLOCK - 70001 } };
		SYS(lseek(fd, 0, SEEK_SET));
		CHECK(readv(fd, parts, 3) == BLOCK, "readv: %s", strerror(errno));
		CHECK(!memcmp(in, out, BLOCK), "readv brought other bytes");
		CHECK(read(fd, in, 100) == 64 && !memcmp(in, out, 64), "the single bytes");
		CHECK(read(fd, in, 100) == 0, "the end");
		round++;
	} while (!told());
	PASS();
}
