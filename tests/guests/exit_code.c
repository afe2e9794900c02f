/* Ends with the code argv[1], after READY and the line. */
#include "guest.h"

int main(int argc, char **argv)
{
	ready();
	wait_line();
	say("leaving\n");
	return argc > 1 ? atoi(argv[1]) : 0;
}
