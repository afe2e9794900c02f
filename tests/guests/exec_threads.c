/* A thread that is not the leader executes a program while others wait and work: the new program has one thread, with the process's number.
 * Then once more when the leader has ended. */
#include "guest.h"
#include <dirent.h>

static int waits[2];
static char *self;

static void *blocked(void *argument)
{
	(void)argument;
	char c;
	(void)!read(waits[0], &c, 1);
	return 0;
}

static void *sleeper(void *argument)
{
	(void)argument;
	sleep(1000);
	return 0;
}

static void *worker(void *argument)
{
	(void)argument;
	for (volatile unsigned long n = 0;; n++)
		if (n % 4096 == 0)
			getppid();
	return 0;
}

static void again(const char *round)
{
	char pid[16], *next[] = { self, (char *)round, pid, 0 };
	snprintf(pid, sizeof pid, "%d", getpid());
	/* Of a process whose leader has ended /proc/self/exe leads nowhere. */
	execv(self, next);
	FAIL("execv: %s", strerror(errno));
}

static void *executes(void *round)
{
	if (!strcmp(round, "1"))
		wait_line();
	else
		usleep(20000);
	again(round);
	return 0;
}

static int threads(void)
{
	int count = 0;
	DIR *tasks = opendir("/proc/self/task");
	CHECK(tasks, "/proc/self/task: %s", strerror(errno));
	for (struct dirent *entry; (entry = readdir(tasks));)
		count += entry->d_name[0] != '.';
	closedir(tasks);
	return count;
}

int main(int argc, char **argv)
{
	int round = argc > 2 ? atoi(argv[1]) : 0;
	self = argv[0];
	if (round > 0) {
		CHECK(atoi(argv[2]) == getpid() && gettid() == getpid(), "pid was %s, is %d, thread %d", argv[2], getpid(), gettid());
		CHECK(threads() == 1, "%d threads", threads());
	}
	if (round == 3)
		PASS();
	pthread_t thread;
	SYS(pipe2(waits, O_CLOEXEC));
	for (int i = 0; i < 3; i++) {
		CHECK(!pthread_create(&thread, 0, blocked, 0), "pthread_create");
		CHECK(!pthread_create(&thread, 0, sleeper, 0), "pthread_create");
	}
	CHECK(!pthread_create(&thread, 0, worker, 0), "pthread_create");
	if (round == 0)
		ready();
	if (round == 2) {
		usleep(20000);
		again("3");
	}
	CHECK(!pthread_create(&thread, 0, executes, round ? "2" : "1"), "pthread_create");
	if (round == 1)
		pthread_exit(0);
	pause();
}
