/* mmap, munmap, mprotect, mremap and madvise work on every node, and what they made is right after the next move. */
#include "guest.h"
#define PAGE 4096ul
#define SLOTS 32
static struct { char *at; size_t size; uint64_t seed; } slots[SLOTS];

static void check_slot(int i)
{
	long wrong = verify(slots[i].at, slots[i].size, slots[i].seed);
	CHECK(wrong < 0, "mapping %d at %p: word %ld is wrong", i, slots[i].at, wrong);
}

int main(void)
{
	ready();
	uint64_t round = 0;
	do {
		uint64_t r = mix(round++);
		int i = r % SLOTS;
		size_t size = (1 + r / SLOTS % 64) * PAGE;
		if (!slots[i].at) {
			slots[i].at = SYS(mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
			slots[i].size = size;
			slots[i].seed = r;
			CHECK(slots[i].at[size - 1] == 0, "new memory is not zero");
			fill(slots[i].at, size, r);
			if (r & 1 << 20)
				SYS(mprotect(slots[i].at, size, PROT_READ));
		} else if (r & 1 << 21) {
			check_slot(i);
			SYS(mprotect(slots[i].at, slots[i].size, PROT_READ | PROT_WRITE));
			slots[i].at = SYS(mremap(slots[i].at, slots[i].size, size, MREMAP_MAYMOVE));
			if (size < slots[i].size)
				slots[i].size = size;
			check_slot(i);
			slots[i].size = size;
			fill(slots[i].at, size, slots[i].seed);
		} else if (r & 1 << 22) {
			SYS(mprotect(slots[i].at, slots[i].size, PROT_READ | PROT_WRITE));
			SYS(madvise(slots[i].at, slots[i].size, MADV_DONTNEED));
			CHECK(slots[i].at[0] == 0, "MADV_DONTNEED left bytes");
			fill(slots[i].at, slots[i].size, slots[i].seed);
		} else {
			check_slot(i);
			SYS(munmap(slots[i].at, slots[i].size));
			slots[i].at = 0;
		}
	} while (round % 16 || !told());
	for (int i = 0; i < SLOTS; i++)
		if (slots[i].at)
			check_slot(i);
	PASS();
}
