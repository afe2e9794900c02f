/* What a program that is executed has of the signals of the one before: mask, ignored ones, what was pending with all that came with it, a
 * running alarm; and no handler. */
#include "guest.h"

static void handler(int number)
{
	(void)number;
}

static void check_pending(int number, int code, int value)
{
	sigset_t set;
	siginfo_t info;
	struct timespec now = { 0 };
	sigemptyset(&set);
	sigaddset(&set, number);
	int got = sigtimedwait(&set, &info, &now);
	CHECK(got == number, "signal %d is not pending: %s", number, strerror(errno));
	/* Some kernels say of tgkill what they say of kill. */
	int as_kill = code == SI_TKILL && info.si_code == SI_USER;
	CHECK((info.si_code == code || as_kill) && info.si_pid == getpid() && (code != SI_QUEUE || info.si_value.sival_int == value),
	      "signal %d: code %d, pid %d, value %d", number, info.si_code, info.si_pid, info.si_value.sival_int);
}

int main(int argc, char **argv)
{
	sigset_t set;
	struct sigaction action;
	if (argc > 1) {
		sigprocmask(SIG_BLOCK, 0, &set);
		for (int number = 1; number < 65; number++) {
			int blocked = number == SIGUSR1 || number == SIGUSR2 || number == SIGALRM || number == SIGRTMIN || number == SIGRTMIN + 1;
			if (number == 32 || number == 33 || number == SIGKILL || number == SIGSTOP)
				continue;
			CHECK(sigismember(&set, number) == blocked, "signal %d in the mask", number);
			SYS(sigaction(number, 0, &action));
			int ignored = number == SIGHUP || number == SIGQUIT || number == SIGRTMIN + 2;
			CHECK(action.sa_handler == (ignored ? SIG_IGN : SIG_DFL), "disposition of %d", number);
		}
		check_pending(SIGUSR1, SI_QUEUE, 17);
		check_pending(SIGUSR2, SI_TKILL, 0);
		for (int i = 0; i < 3; i++)
			check_pending(SIGRTMIN, SI_QUEUE, 100 + i);
		check_pending(SIGRTMIN + 1, SI_USER, 0);
		sigemptyset(&set);
		sigaddset(&set, SIGALRM);
		int number = 0;
		sigwait(&set, &number);
		CHECK(number == SIGALRM, "no alarm");
		SYS(sigpending(&set));
		CHECK(sigisemptyset(&set), "more is pending");
		if (atoi(argv[1]) > 2)
			PASS();
	} else {
		ready();
		wait_line();
	}
	signal(SIGHUP, SIG_IGN);
	signal(SIGTERM, handler);
	signal(SIGCHLD, handler);
	signal(SIGQUIT, handler);
	signal(SIGQUIT, SIG_IGN);
	signal(SIGRTMIN + 2, SIG_IGN);
	signal(SIGUSR1, handler);
	sigemptyset(&set);
	int blocked[] = { SIGUSR1, SIGUSR2, SIGALRM, SIGRTMIN, SIGRTMIN + 1 };
	for (size_t i = 0; i < sizeof blocked / sizeof *blocked; i++)
		sigaddset(&set, blocked[i]);
	SYS(sigprocmask(SIG_SETMASK, &set, 0));
	SYS(sigqueue(getpid(), SIGUSR1, (union sigval){ .sival_int = 17 }));
	SYS(syscall(SYS_tgkill, getpid(), getpid(), SIGUSR2));
	for (int i = 0; i < 3; i++)
		SYS(sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = 100 + i }));
	SYS(kill(getpid(), SIGRTMIN + 1));
	alarm(1);
	char next[16], *again[] = { argv[0], next, 0 };
	snprintf(next, sizeof next, "%d", argc > 1 ? atoi(argv[1]) + 1 : 1);
	execv("/proc/self/exe", again);
	FAIL("execv: %s", strerror(errno));
}
