/* The heap grows and shrinks by brk(2) on every node, keeps its bytes, and new memory is zero. */
#include "guest.h"

int main(void)
{
	char *base = SYS(sbrk(0));
	size_t have = 0;
	ready();
	int rounds = 0;
	do {
		char *at = SYS(sbrk(256 << 10));
		CHECK(at == base + have, "brk was %p instead of %p", at, base + have);
		for (size_t i = 0; i < 256 << 10; i += 512)
			CHECK(at[i] == 0, "new memory has %d at %zu", at[i], have + i);
		fill(at, 256 << 10, have / 8);
		have += 256 << 10;
		if (have >= 32 << 20) {
			long wrong = verify(base, have, 0);
			CHECK(wrong < 0, "word %ld changed", wrong);
			SYS(sbrk(-(long)(have - (1 << 20))));
			have = 1 << 20;
			CHECK(sbrk(0) == base + have, "brk after shrinking");
		}
		rounds++;
		usleep(1000);
	} while (!told());
	long wrong = verify(base, have, 0);
	CHECK(wrong < 0, "word %ld changed", wrong);
	char *block = malloc(100000);
	CHECK(block, "malloc");
	memset(block, 1, 100000);
	PASS();
}
