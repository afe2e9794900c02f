/* Which signals wait, and in which order they come. */
#include "behaviour.h"

BEHAVIOUR(pending_before_the_move, "rt_sigaction")
{
	block(SIG_BLOCK, SIGUSR1);
	SYS(kill(getpid(), SIGUSR1));
	away();
	sigset_t pending;
	sigpending(&pending);
	SAME(sigismember(&pending, SIGUSR1), 1);
	SAME(sigismember(&pending, SIGUSR2), 0);
	handle(SIGUSR1, 0);
	block(SIG_UNBLOCK, SIGUSR1);
	SAME(handled, 1);
	SAME(handled_info.si_code, SI_USER);
	SAME(handled_info.si_pid, getpid());
}

BEHAVIOUR(ordinary_signals_merge, "kill")
{
	handle(SIGUSR1, 0);
	block(SIG_BLOCK, SIGUSR1);
	SYS(kill(getpid(), SIGUSR1));
	away();
	for (int i = 0; i < 5; i++)
		SYS(kill(getpid(), SIGUSR1));
	block(SIG_UNBLOCK, SIGUSR1);
	SAME(handled, 1);
}

static int order[64], ordered;

static void in_order(int signal, siginfo_t *info, void *context)
{
	(void)context;
	order[ordered++ % 64] = signal * 100 + info->si_value.sival_int;
}

BEHAVIOUR(realtime_order, "rt_sigqueueinfo")
{
	struct sigaction action = { .sa_sigaction = in_order, .sa_flags = SA_SIGINFO };
	sigfillset(&action.sa_mask);
	for (int i = 0; i < 3; i++) {
		SYS(sigaction(SIGRTMIN + i, &action, 0));
		block(SIG_BLOCK, SIGRTMIN + i);
	}
	/* Half of them before the move. */
	for (int value = 0; value < 3; value++)
		for (int i = 2; i >= 0; i--)
			SYS(sigqueue(getpid(), SIGRTMIN + i, (union sigval){ .sival_int = value }));
	away();
	for (int value = 3; value < 6; value++)
		for (int i = 2; i >= 0; i--)
			SYS(sigqueue(getpid(), SIGRTMIN + i, (union sigval){ .sival_int = value }));
	sigset_t none;
	sigemptyset(&none);
	SYS(sigprocmask(SIG_SETMASK, &none, 0));
	/* The lowest number first, each in the order of sending. */
	SAME(ordered, 18);
	for (int i = 0; i < 18; i++)
		SAME(order[i], (SIGRTMIN + i / 6) * 100 + i % 6);
}

BEHAVIOUR(ignoring_drops_what_is_pending, "rt_sigaction")
{
	block(SIG_BLOCK, SIGUSR1);
	SYS(kill(getpid(), SIGUSR1));
	away();
	signal(SIGUSR1, SIG_IGN);
	handle(SIGUSR1, 0);
	block(SIG_UNBLOCK, SIGUSR1);
	SAME(handled, 0);
}

BEHAVIOUR(sigwaitinfo_takes_one, "rt_sigqueueinfo rt_sigtimedwait")
{
	block(SIG_BLOCK, SIGRTMIN);
	sigset_t set = set_of(SIGRTMIN);
	SYS(sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = 1 }));
	away();
	SYS(sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = 2 }));
	siginfo_t info;
	for (int i = 1; i <= 2; i++) {
		SAME(sigwaitinfo(&set, &info), SIGRTMIN);
		SAME(info.si_value.sival_int, i);
	}
	FAILS(sigtimedwait(&set, &info, &(struct timespec){ 0, 0 }), EAGAIN);
}
