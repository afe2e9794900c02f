/* The stack grows on every node, deeper than it was when it came there, and keeps its bytes. */
#include "guest.h"

static uint64_t descend(int depth, uint64_t seed)
{
	uint64_t room[512];
	fill(room, sizeof room, seed);
	uint64_t below = depth ? descend(depth - 1, mix(seed)) : 0;
	long wrong = verify(room, sizeof room, seed);
	CHECK(wrong < 0, "frame %d: word %ld is wrong", depth, wrong);
	return below + room[seed % 512];
}

static int frames(void)
{
	return 10;
}

int main(void)
{
	uint64_t first = descend(frames(), 5);
	ready();
	int depth = 10;
	do {
		CHECK(descend(frames(), 5) == first, "another sum");
		descend(depth, 9);
		depth = depth < 1500 ? depth + 25 : 10;
	} while (!told());
	descend(1700, 11);
	PASS();
}
