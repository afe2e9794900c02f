/* Children that were made at home, waited for by a parent that moved. */
#include "behaviour.h"
#include <sys/resource.h>

static int go[2];

/* A child that waits for the word and then does this. */
static pid_t child_that(void (*act)(void))
{
	if (!go[1])
		SYS(pipe(go));
	pid_t parent = getpid(), child = SYS(fork());
	if (child == 0) {
		char c;
		end_with(parent);
		close(go[1]);
		if (read(go[0], &c, 1) == 1)
			act();
		_exit(0);
	}
	return child;
}

static void give_word(int times)
{
	while (times-- > 0)
		CHECK(write(go[1], "g", 1) == 1, "write");
}

static void exit_7(void)
{
	_exit(7);
}

static void die_of_15(void)
{
	raise(SIGTERM);
}

static void crash(void)
{
	struct rlimit none = { 0, 0 };
	setrlimit(RLIMIT_CORE, &none);
	abort();
}

static void stop(void)
{
	raise(SIGSTOP);
	_exit(3);
}

BEHAVIOUR(status_of_an_exit, "wait4")
{
	pid_t early = child_that(exit_7), late = child_that(exit_7);
	give_word(1);
	usleep(20000);
	away();
	int status;
	give_word(1);
	/* One ended before the moves, the other ends now. */
	for (int i = 0; i < 2; i++) {
		pid_t pid = waitpid(i ? late : early, &status, 0);
		CHECK(pid == (i ? late : early) && status == 7 << 8, "pid %d, status %#x", pid, status);
	}
	FAILS(waitpid(-1, &status, 0), ECHILD);
}

BEHAVIOUR(status_of_a_death, "wait4")
{
	pid_t child = child_that(die_of_15);
	away();
	int status;
	SAME(waitpid(child, &status, WNOHANG), 0);
	give_word(1);
	struct rusage usage;
	SAME(wait4(child, &status, 0, &usage), child);
	SAME(status, SIGTERM);
}

BEHAVIOUR(status_of_a_crash, "wait4 waitid")
{
	pid_t child = child_that(crash);
	away();
	give_word(1);
	siginfo_t info;
	SYS(waitid(P_PID, child, &info, WEXITED | WNOWAIT));
	/* Without a limit for cores there is no core, and no bit that tells of one. */
	SAME(info.si_code, CLD_KILLED);
	SAME(info.si_status, SIGABRT);
	int status;
	SAME(waitpid(child, &status, 0), child);
	SAME(status, SIGABRT);
}

BEHAVIOUR(stopped_and_continued, "wait4 waitid kill")
{
	pid_t child = child_that(stop);
	away();
	give_word(1);
	int status;
	SAME(waitpid(child, &status, WUNTRACED), child);
	CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP, "status %#x", status);
	SYS(kill(child, SIGCONT));
	siginfo_t info;
	SYS(waitid(P_PID, child, &info, WCONTINUED | WEXITED | WNOWAIT));
	CHECK(info.si_code == CLD_CONTINUED || info.si_code == CLD_EXITED, "code %d", info.si_code);
	SAME(waitpid(child, &status, 0), child);
	SAME(status, 3 << 8);
}

BEHAVIOUR(sigchld_tells_what_happened, "wait4 kill")
{
	pid_t child = child_that(exit_7), other = child_that(die_of_15);
	handle(SIGCHLD, 0);
	away();
	SYS(kill(child, SIGSTOP));
	while (handled < 1)
		usleep(1000);
	SAME(handled_info.si_code, CLD_STOPPED);
	SAME(handled_info.si_status, SIGSTOP);
	SAME(handled_info.si_pid, child);
	SYS(kill(child, SIGCONT));
	while (handled < 2)
		usleep(1000);
	SAME(handled_info.si_code, CLD_CONTINUED);
	SYS(kill(other, SIGKILL));
	while (handled < 3)
		usleep(1000);
	SAME(handled_info.si_code, CLD_KILLED);
	SAME(handled_info.si_status, SIGKILL);
	SAME(handled_info.si_pid, other);
	give_word(1);
	while (handled < 4)
		usleep(1000);
	SAME(handled_info.si_code, CLD_EXITED);
	SAME(handled_info.si_status, 7);
	SAME(waitpid(child, 0, 0), child);
	SAME(waitpid(other, 0, 0), other);
}

BEHAVIOUR(no_word_of_stops, "rt_sigaction kill wait4")
{
	pid_t child = child_that(exit_7);
	away();
	handle(SIGCHLD, SA_NOCLDSTOP);
	int status;
	SYS(kill(child, SIGSTOP));
	SAME(waitpid(child, &status, WUNTRACED), child);
	SYS(kill(child, SIGCONT));
	SAME(waitpid(child, &status, WCONTINUED), child);
	SAME(handled, 0);
	give_word(1);
	while (!handled)
		usleep(1000);
	SAME(handled_info.si_code, CLD_EXITED);
	SAME(waitpid(child, 0, 0), child);
}

BEHAVIOUR(children_that_nobody_waits_for, "rt_sigaction wait4")
{
	child_that(exit_7);
	away();
	/* Ignored, SIGCHLD makes children vanish; waiting then lasts until the last one is gone. */
	signal(SIGCHLD, SIG_IGN);
	give_word(1);
	FAILS(waitpid(-1, 0, 0), ECHILD);
}

BEHAVIOUR(no_zombies_by_flag, "rt_sigaction wait4")
{
	child_that(exit_7);
	away();
	handle(SIGCHLD, SA_NOCLDWAIT | SA_RESTART);
	give_word(1);
	FAILS(waitpid(-1, 0, 0), ECHILD);
	SAME(handled, 1);
}

BEHAVIOUR(waiting_by_group, "waitid wait4")
{
	pid_t one = child_that(exit_7), two = child_that(exit_7);
	SYS(setpgid(one, one));
	SYS(setpgid(two, one));
	away();
	give_word(2);
	siginfo_t info;
	SYS(waitid(P_PGID, one, &info, WEXITED));
	CHECK(info.si_pid == one || info.si_pid == two, "pid %d", info.si_pid);
	SAME(info.si_code, CLD_EXITED);
	pid_t other = info.si_pid == one ? two : one;
	SAME(waitpid(-one, 0, 0), other);
	info.si_pid = 5;
	FAILS(waitid(P_PGID, one, &info, WEXITED), ECHILD);
}

BEHAVIOUR(wait_ends_with_a_signal, "wait4")
{
	pid_t child = child_that(exit_7);
	pid_t parent = getpid(), sender = SYS(fork());
	if (sender == 0) {
		wait_line();
		usleep(100000);
		kill(parent, SIGUSR1);
		_exit(0);
	}
	handle(SIGUSR1, 0);
	ready();
	/* In the call while it moves, and until the signal comes. */
	FAILS(waitpid(child, 0, 0), EINTR);
	SAME(handled, 1);
	SAME(handled_info.si_pid, sender);
	reap(sender);
	int status;
	SAME(waitpid(child, &status, WNOHANG), 0);
	give_word(1);
	SAME(waitpid(child, &status, 0), child);
}

BEHAVIOUR(forked_by_the_old_call, "fork wait4")
{
	away();
	pid_t parent = getpid(), child = SYS(syscall(SYS_fork));
	if (child == 0)
		_exit(getppid() == parent && getpid() != parent ? 5 : 6);
	int status;
	SAME(waitpid(child, &status, 0), child);
	SAME(status, 5 << 8);
}

BEHAVIOUR(in_its_parents_memory, "vfork wait4")
{
	away();
	static volatile int seen;
	pid_t child = vfork();
	if (child == 0) {
		seen = 5;
		_exit(6);
	}
	SAME(seen, 5);
	int status;
	SAME(waitpid(child, &status, 0), child);
	SAME(status, 6 << 8);
}

/* A child that executes a program, by its name or by a descriptor. */
static int ran(int fd)
{
	char *argv[] = { "sh", "-c", "exit $0", "9", 0 }, *none[] = { 0 };
	pid_t child = SYS(fork());
	if (child == 0) {
		if (fd < 0)
			execve("/bin/sh", argv, none);
		else
			syscall(SYS_execveat, fd, "", argv, none, AT_EMPTY_PATH);
		_exit(127);
	}
	int status;
	SAME(waitpid(child, &status, 0), child);
	return status;
}

BEHAVIOUR(executes_a_program, "execve wait4")
{
	away();
	char *none[] = { 0 };
	FAILS(execve("/nowhere", none, none), ENOENT);
	FAILS(execve("/etc", none, none), EACCES);
	SAME(ran(-1), 9 << 8);
}

BEHAVIOUR(executes_a_descriptor, "execveat wait4")
{
	char *none[] = { 0 };
	int fd = SYS(open("/bin/sh", O_PATH | O_CLOEXEC));
	away();
	FAILS(syscall(SYS_execveat, fd, "in", none, none, 0), ENOTDIR);
	SAME(ran(fd), 9 << 8);
}
