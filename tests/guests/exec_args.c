/* Many and long arguments and variables, and none at all, are in the new program what they were in the old one. */
#include "guest.h"

enum { SHORT = 20000, LONG = 8, LENGTH = 100000 };

static uint64_t sum(char **strings)
{
	uint64_t sum = 0;
	for (; *strings; strings++)
		for (char *c = *strings;; c++) {
			sum = mix(sum + *c);
			if (!*c)
				break;
		}
	return sum;
}

int main(int argc, char **argv)
{
	char expected[32];
	if (argc == 1 && getenv("ARGUMENTS")) {
		CHECK(!strcmp(argv[0], ""), "argv[0] is %s", argv[0]);
		PASS();
	}
	if (argc > 1) {
		snprintf(expected, sizeof expected, "%llx", (unsigned long long)sum(argv + 2));
		CHECK(argc == SHORT + LONG + 2, "%d arguments", argc);
		CHECK(!strcmp(argv[1], expected), "arguments: %s instead of %s", expected, argv[1]);
		CHECK(!environ[1] && strlen(environ[0]) == LENGTH, "the environment");
		/* Linux makes one empty argument of none. */
		char *last[] = { "ARGUMENTS=none", 0 };
		syscall(SYS_execve, "/proc/self/exe", 0, last);
		FAIL("execve without arguments: %s", strerror(errno));
	}
	char **next = malloc((SHORT + LONG + 3) * sizeof *next), *variable = malloc(LENGTH + 1), *environment[] = { variable, 0 };
	next[0] = argv[0];
	for (int i = 0; i < SHORT + LONG; i++) {
		size_t length = i % (SHORT / LONG) == 7 ? LENGTH : (size_t)(mix(i) % 12);
		next[i + 2] = malloc(length + 1);
		for (size_t at = 0; at < length; at++)
			next[i + 2][at] = 1 + mix(i + at * 31) % 255;
		next[i + 2][length] = 0;
	}
	next[SHORT + LONG + 2] = 0;
	snprintf(expected, sizeof expected, "%llx", (unsigned long long)sum(next + 2));
	next[1] = expected;
	memset(variable, 'v', LENGTH);
	variable[LENGTH] = 0;
	ready();
	wait_line();
	execve("/proc/self/exe", next, environment);
	FAIL("execve: %s", strerror(errno));
}
