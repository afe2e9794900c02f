/* Children of vfork on every node: they have the parent's memory itself, the parent waits, its other threads do not. */
#include "guest.h"

static _Atomic uint64_t beats, stop;

static void *beating(void *argument)
{
	while (!stop) {
		beats++;
		usleep(200);
	}
	return argument;
}

int main(void)
{
	static volatile uint64_t told_by_child[2];
	pthread_t other;
	CHECK(pthread_create(&other, 0, beating, 0) == 0, "pthread_create");
	ready();
	volatile uint64_t round = 0;
	do {
		round++;
		volatile pid_t own = getpid();
		uint64_t before = beats;
		pid_t child = vfork();
		CHECK(child >= 0, "vfork: %s", strerror(errno));
		if (child == 0) {
			told_by_child[0] = round;
			told_by_child[1] = getppid() == own;
			/* The other thread goes on meanwhile. */
			for (int i = 0; i < 2000 && beats == before; i++)
				usleep(1000);
			if (round % 5 == 4)
				kill(getpid(), SIGKILL);
			_exit(round % 100);
		}
		CHECK(told_by_child[0] == round && told_by_child[1] == 1, "the child wrote %lu %lu in round %lu",
		      told_by_child[0], told_by_child[1], round);
		CHECK(beats != before, "the other thread stood still");
		int status;
		CHECK(waitpid(child, &status, 0) == child, "waitpid: %s", strerror(errno));
		if (round % 5 == 4)
			CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %#x instead of SIGKILL", status);
		else
			CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (int)(round % 100), "status %#x in round %lu", status, round);
		usleep(20000);
	} while (!told());
	stop = 1;
	CHECK(pthread_join(other, 0) == 0, "pthread_join");
	PASS();
}
