/* The shell's `time` shows the CPU time of a program that was moved with it. The program says to stderr what that should be. */
#include "cpu.h"

int main(int argc, char **argv)
{
	if (argc == 1)
		execlp("bash", "bash", "-c", "TIMEFORMAT='%U %S'; time \"$0\" work; exit 0", argv[0], (char *)0);
	CHECK(argc > 1, "bash: %s", strerror(errno));
	long each = work_for(0.02), rounds = 0;
	ready();
	do {
		work(each);
		rounds++;
	} while (!told() || rounds < 60);
	fprintf(stderr, "%.2f\n", rounds * 0.02);
	PASS();
}
