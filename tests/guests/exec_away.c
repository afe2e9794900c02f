/* Executes itself on whatever node it is: same pid, arguments, environment, descriptors; CLOEXEC ones are gone. */
#include "guest.h"

static void handler(int number)
{
	(void)number;
}

int main(int argc, char **argv)
{
	int times = argc > 3 ? atoi(argv[1]) : 0;
	if (times > 0) {
		CHECK(atoi(argv[2]) == getpid(), "pid was %s, is %d", argv[2], getpid());
		CHECK(getenv("KEPT") && !strcmp(getenv("KEPT"), argv[1]), "KEPT is %s", getenv("KEPT"));
		CHECK(!strcmp(argv[3], "an argument with spaces"), "argument: %s", argv[3]);
		CHECK(fcntl(60, F_GETFD) == 0, "descriptor 60: %s", strerror(errno));
		CHECK(fcntl(61, F_GETFD) == -1 && errno == EBADF, "descriptor 61 is still open");
		sigset_t set;
		sigprocmask(SIG_BLOCK, 0, &set);
		CHECK(sigismember(&set, SIGUSR2), "the mask was lost");
		struct sigaction action;
		sigaction(SIGUSR1, 0, &action);
		CHECK(action.sa_handler == SIG_IGN, "an ignored signal is not");
		sigaction(SIGTERM, 0, &action);
		CHECK(action.sa_handler == SIG_DFL, "a handler survived");
	} else {
		int fd = SYS(open("/dev/null", O_RDWR));
		SYS(dup2(fd, 60));
		SYS(close(fd));
		signal(SIGUSR1, SIG_IGN);
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, SIGUSR2);
		sigprocmask(SIG_BLOCK, &set, 0);
		ready();
	}
	if (told() && times > 3)
		PASS();
	usleep(1000);
	SYS(dup3(60, 61, O_CLOEXEC));
	signal(SIGTERM, handler);
	char next[16], pid[16], *again[] = { argv[0], next, pid, "an argument with spaces", 0 };
	snprintf(next, sizeof next, "%d", times + 1);
	snprintf(pid, sizeof pid, "%d", getpid());
	setenv("KEPT", next, 1);
	execv("/proc/self/exe", again);
	FAIL("execv: %s", strerror(errno));
}
