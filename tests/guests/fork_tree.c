/* Threads fork side by side, children fork again, orphans find a new parent, process groups and sessions are home's, and every end is told
 * once, with its SIGCHLD. */
#include "guest.h"

#define THREADS 3
static _Atomic int ended;

static void child_ended(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	if (info->si_code == CLD_EXITED || info->si_code == CLD_KILLED)
		ended++;
}

/* A child with a child of its own, whose exit status it hands on. */
static void *forks(void *argument)
{
	long number = (long)argument;
	pid_t child = SYS(fork());
	if (child == 0) {
		CHECK(syscall(SYS_gettid) == getpid(), "a child has another thread's number");
		SYS(setpgid(0, 0));
		CHECK(getpgrp() == getpid(), "the group is %d", (int)getpgrp());
		pid_t inner = SYS(fork());
		if (inner == 0) {
			if (number == 0)
				SYS(setsid());
			CHECK(getpgid(0) == (number == 0 ? getpid() : getppid()), "the inner group");
			_exit(40 + number);
		}
		int status;
		CHECK(waitpid(inner, &status, 0) == inner && WIFEXITED(status), "the inner child: %#x", status);
		_exit(WEXITSTATUS(status));
	}
	int status;
	pid_t got;
	while ((got = waitpid(child, &status, 0)) == -1 && errno == EINTR)
		;
	CHECK(got == child, "waitpid: %s", strerror(errno));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 40 + number, "status %#x of child %ld", status, number);
	return 0;
}

/* An orphan outlives its parent and says who has it now. */
static void orphan(void)
{
	int ends[2];
	SYS(pipe(ends));
	pid_t own = getpid(), child = SYS(fork());
	if (child == 0) {
		pid_t parent = getpid();
		if (SYS(fork()) == 0) {
			while (getppid() == parent)
				usleep(1000);
			int fine = getppid() != own;
			_exit(write(ends[1], &fine, sizeof fine) == sizeof fine ? 0 : 1);
		}
		_exit(7);
	}
	int status, fine = 0;
	while (waitpid(child, &status, 0) == -1 && errno == EINTR)
		;
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "the orphan's parent: %#x", status);
	close(ends[1]);
	while (read(ends[0], &fine, sizeof fine) == -1 && errno == EINTR)
		;
	close(ends[0]);
	CHECK(fine == 1, "the orphan kept its parent");
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = child_ended, .sa_flags = SA_SIGINFO | SA_RESTART };
	SYS(sigaction(SIGCHLD, &action, 0));
	ready();
	do {
		pthread_t threads[THREADS];
		for (long i = 0; i < THREADS; i++)
			CHECK(pthread_create(&threads[i], 0, forks, (void *)i) == 0, "pthread_create");
		for (int i = 0; i < THREADS; i++)
			CHECK(pthread_join(threads[i], 0) == 0, "pthread_join");
		orphan();
		CHECK(waitpid(-1, 0, WNOHANG) == -1 && errno == ECHILD, "there is another child");
		CHECK(ended > 0, "no SIGCHLD came");
	} while (!told());
	PASS();
}
