/* CPU clocks of the process and of its threads have all CPU time of every node, in every form in which they can be asked. */
#include "cpu.h"
static atomic_int over;
static atomic_long helped;
static long each;

static void *help(void *unused)
{
	(void)unused;
	while (!over) {
		work(each);
		helped++;
	}
	pause();
	return 0;
}

int main(void)
{
	each = work_for(0.02);
	pthread_t thread;
	SYS(pthread_create(&thread, 0, help, 0));
	ready();
	long own = 0;
	do {
		work(each);
		own++;
	} while (!told() || own < 60);
	over = 1;
	clockid_t process, self, other;
	SYS(clock_getcpuclockid(getpid(), &process));
	SYS(pthread_getcpuclockid(pthread_self(), &self));
	SYS(pthread_getcpuclockid(thread, &other));
	/* It has gone to sleep when its clock stands still. */
	double before, theirs = now(other);
	do {
		before = theirs;
		usleep(50000);
		theirs = now(other);
	} while (theirs - before > 0.001);
	double mine = now(CLOCK_THREAD_CPUTIME_ID), all = now(CLOCK_PROCESS_CPUTIME_ID);
	about("own thread", mine, own * 0.02);
	about("other thread", theirs, helped * 0.02);
	between("process", all, mine + theirs - 0.001, mine + theirs + COST);
	between("process by number", now(process), all, all + COST);
	between("thread by number", now(self), mine, mine + COST);
	between("clock()", clock() / (double)CLOCKS_PER_SEC, all - 0.001, all + COST);
	for (int i = 0; i < 2000; i++) {
		/* What is said again after a call that home has made is not less. */
		if (i % 3 == 0)
			getppid();
		double next = now(CLOCK_PROCESS_CPUTIME_ID), thread_next = now(CLOCK_THREAD_CPUTIME_ID);
		CHECK(next >= all && thread_next >= mine, "back by %.9f, %.9f s", all - next, mine - thread_next);
		all = next;
		mine = thread_next;
	}
	double begin = now(CLOCK_THREAD_CPUTIME_ID);
	work(25 * each);
	about("a stretch of work", now(CLOCK_THREAD_CPUTIME_ID) - begin, 0.5);
	CHECK(clock_gettime(-1000 * 8 - 2, &(struct timespec){ 0 }) == -1 && errno == EINVAL, "a clock of nobody: %s",
	      strerror(errno));
	PASS();
}
