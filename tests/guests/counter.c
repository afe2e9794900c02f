/* Computes without any system call but a look at stdin now and then; the result must be that of a second computation. */
#include "guest.h"

static uint64_t steps(uint64_t x, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		x = mix(x + i);
	return x;
}

int main(void)
{
	uint64_t x = 1, rounds = 0;
	ready();
	do {
		x = steps(x, 200000);
		rounds++;
	} while (!told());
	uint64_t y = 1;
	for (uint64_t i = 0; i < rounds; i++)
		y = steps(y, 200000);
	CHECK(x == y, "%llu rounds gave %llx, then %llx", (unsigned long long)rounds, (unsigned long long)x,
	      (unsigned long long)y);
	PASS();
}
