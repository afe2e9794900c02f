/* Signals sent by the moved process: to itself, a thread, its group, with values. */
#include "behaviour.h"

BEHAVIOUR(kill_self, "kill")
{
	handle(SIGUSR1, 0);
	away();
	SYS(kill(getpid(), SIGUSR1));
	/* A signal to oneself that is not blocked is there before kill returns. */
	SAME(handled, 1);
	SAME(handled_info.si_code, SI_USER);
	SAME(handled_info.si_pid, getpid());
	SAME(handled_info.si_uid, getuid());
}

BEHAVIOUR(kill_nothing, "kill getpgid")
{
	away();
	SYS(kill(getpid(), 0));
	SYS(kill(-getpgid(0), 0));
	FAILS(kill(getpid(), 65), EINVAL);
	FAILS(kill(getpid(), -1), EINVAL);
	FAILS(kill(0x3fffffff, SIGTERM), ESRCH);
}

BEHAVIOUR(kill_child, "kill wait4")
{
	pid_t child = SYS(fork());
	if (child == 0)
		for (;;)
			pause();
	away();
	int status;
	SYS(kill(child, SIGTERM));
	SAME(waitpid(child, &status, 0), child);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "status %#x", status);
	FAILS(kill(child, 0), ESRCH);
}

BEHAVIOUR(kill_group, "kill setpgid getpgrp")
{
	/* A group of their own: the harness's would be hit too. */
	SYS(setpgid(0, 0));
	pid_t child = SYS(fork());
	if (child == 0) {
		end_with(getppid());
		for (;;)
			pause();
	}
	handle(SIGTERM, 0);
	away();
	SAME(getpgrp(), getpid());
	SYS(setpgid(child, getpid()));
	SYS(kill(0, SIGTERM));
	SAME(handled, 1);
	int status;
	SAME(waitpid(child, &status, 0), child);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "status %#x", status);
}

static _Atomic pid_t other_tid;
static _Atomic int other_ran;
static pthread_t other;

static void *wait_for_signal(void *signal)
{
	sigset_t set = set_of((int)(intptr_t)signal);
	other_tid = gettid();
	int got;
	CHECK(sigwait(&set, &got) == 0, "sigwait");
	other_ran = got;
	return 0;
}

/* Starts a thread that waits for this signal, which all threads block. */
static void start_waiter(int signal)
{
	block(SIG_BLOCK, signal);
	CHECK(pthread_create(&other, 0, wait_for_signal, (void *)(intptr_t)signal) == 0, "pthread_create");
	while (!other_tid)
		usleep(1000);
}

BEHAVIOUR(tgkill_thread, "tgkill rt_sigtimedwait")
{
	start_waiter(SIGUSR2);
	away();
	SYS(syscall(SYS_tgkill, getpid(), other_tid, SIGUSR2));
	pthread_join(other, 0);
	SAME(other_ran, SIGUSR2);
	FAILS(syscall(SYS_tgkill, getpid(), 0x3fffffff, SIGUSR2), ESRCH);
	FAILS(syscall(SYS_tgkill, getpid(), 0, SIGUSR2), EINVAL);
}

BEHAVIOUR(tkill_thread, "tkill")
{
	start_waiter(SIGUSR1);
	away();
	SYS(syscall(SYS_tkill, other_tid, SIGUSR1));
	pthread_join(other, 0);
	SAME(other_ran, SIGUSR1);
}

static void *blocked_then_open(void *unused)
{
	(void)unused;
	block(SIG_BLOCK, SIGUSR1);
	other_tid = gettid();
	while (!other_ran)
		usleep(1000);
	block(SIG_UNBLOCK, SIGUSR1);
	return (void *)(intptr_t)handled;
}

BEHAVIOUR(pthread_kill_is_for_one_thread, "tgkill rt_sigpending rt_sigprocmask")
{
	handle(SIGUSR1, 0);
	CHECK(pthread_create(&other, 0, blocked_then_open, 0) == 0, "pthread_create");
	while (!other_tid)
		usleep(1000);
	away();
	/* This thread does not block it, and yet does not get it. */
	CHECK(pthread_kill(other, SIGUSR1) == 0, "pthread_kill");
	usleep(50000);
	SAME(handled, 0);
	sigset_t pending;
	sigpending(&pending);
	SAME(sigismember(&pending, SIGUSR1), 0);
	other_ran = 1;
	void *result;
	pthread_join(other, &result);
	SAME((intptr_t)result, 1);
}

BEHAVIOUR(sigqueue_self, "rt_sigqueueinfo")
{
	handle(SIGRTMIN + 3, 0);
	away();
	SYS(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_ptr = (void *)0x123456789abcdef }));
	SAME(handled, 1);
	SAME(handled_info.si_code, SI_QUEUE);
	SAME(handled_info.si_value.sival_ptr, 0x123456789abcdef);
	SAME(handled_info.si_pid, getpid());
}

BEHAVIOUR(sigqueue_thread, "rt_tgsigqueueinfo")
{
	handle(SIGUSR2, 0);
	away();
	CHECK(pthread_sigqueue(pthread_self(), SIGUSR2, (union sigval){ .sival_int = 77 }) == 0, "pthread_sigqueue");
	SAME(handled, 1);
	SAME(handled_info.si_code, SI_QUEUE);
	SAME(handled_info.si_value.sival_int, 77);
}

BEHAVIOUR(sigqueue_forged, "rt_sigqueueinfo")
{
	pid_t child = SYS(fork());
	if (child == 0)
		for (;;)
			pause();
	away();
	/* Nobody may say in the kernel's name that he sent it, but to himself. */
	siginfo_t info = { .si_signo = SIGUSR1, .si_code = SI_USER };
	FAILS(syscall(SYS_rt_sigqueueinfo, child, SIGUSR1, &info), EPERM);
	info.si_code = SI_TKILL;
	FAILS(syscall(SYS_rt_sigqueueinfo, child, SIGUSR1, &info), EPERM);
	SYS(kill(child, SIGKILL));
	SAME(waitpid(child, 0, 0), child);
}

BEHAVIOUR(pidfd_send_signal_self, "pidfd_open pidfd_send_signal")
{
	handle(SIGUSR1, 0);
	away();
	int fd = SYS(syscall(SYS_pidfd_open, getpid(), 0));
	SYS(syscall(SYS_pidfd_send_signal, fd, SIGUSR1, 0, 0));
	SAME(handled, 1);
	SAME(handled_info.si_pid, getpid());
}

BEHAVIOUR(raise_is_for_the_caller, "tgkill")
{
	handle(SIGUSR1, 0);
	away();
	raise(SIGUSR1);
	SAME(handled, 1);
	SAME(handled_info.si_code, SI_TKILL);
	SAME(handled_info.si_pid, getpid());
}
