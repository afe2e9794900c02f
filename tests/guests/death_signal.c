/* Ends by a signal: argv[1] is `segv`, `fpe`, `ill`, `abort`, `raise N` or `wait` (somebody else sends it). */
#include "guest.h"
#include <sys/prctl.h>
#include <sys/resource.h>

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "segv";
	struct rlimit none = { 0, 0 };
	setrlimit(RLIMIT_CORE, &none);
	ready();
	wait_line();
	if (!strcmp(how, "segv"))
		*(volatile int *)8 = 1;
	else if (!strcmp(how, "fpe")) {
		volatile int one = 1, zero = 0;
		say("%d\n", one / zero);
	} else if (!strcmp(how, "ill"))
		__asm__ volatile("ud2");
	else if (!strcmp(how, "abort"))
		abort();
	else if (!strcmp(how, "raise") && argc > 2)
		raise(atoi(argv[2]));
	else
		for (;;)
			pause();
	FAIL("%s did not end it", how);
}
