/* ITIMER_PROF and ITIMER_VIRTUAL tick with the CPU time of the process wherever it is, by signals of the kernel. */
#include "cpu.h"
enum { EVERY = 50000 };
static volatile sig_atomic_t prof, virtual, wrong;

static void tick(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (number == SIGPROF)
		prof++;
	else
		virtual++;
	if (info->si_code != SI_KERNEL)
		wrong = info->si_code;
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = tick, .sa_flags = SA_RESTART | SA_SIGINFO };
	SYS(sigaction(SIGPROF, &action, 0));
	SYS(sigaction(SIGVTALRM, &action, 0));
	long each = work_for(0.02), rounds = 0;
	struct itimerval every = { { 0, EVERY }, { 0, EVERY } }, once = { { 0, 0 }, { 0, EVERY } }, left;
	SYS(setitimer(ITIMER_PROF, &every, 0));
	SYS(setitimer(ITIMER_VIRTUAL, &every, 0));
	ready();
	do {
		work(each);
		rounds++;
	} while (!told() || rounds < 60);
	double expected = rounds * 0.02;
	about("ITIMER_PROF", prof * (EVERY / 1e6), expected);
	about("ITIMER_VIRTUAL", virtual * (EVERY / 1e6), expected);
	CHECK(!wrong, "a tick with si_code %d", wrong);
	SYS(getitimer(ITIMER_PROF, &left));
	CHECK(left.it_interval.tv_usec == EVERY && left.it_value.tv_sec == 0 && left.it_value.tv_usec > 0 &&
	      left.it_value.tv_usec <= EVERY + 10000, "%ld us left of %ld", left.it_value.tv_usec, left.it_interval.tv_usec);
	/* One that is set where the process is now: it ticks once, and the other no more. */
	SYS(setitimer(ITIMER_PROF, &once, 0));
	SYS(setitimer(ITIMER_VIRTUAL, &(struct itimerval){ 0 }, 0));
	int before = prof, still = virtual;
	work(20 * each);
	CHECK(prof == before + 1 && virtual == still, "%d and %d ticks", prof - before, virtual - still);
	CHECK(setitimer(7, &once, 0) == -1 && errno == EINVAL, "a timer that does not exist: %s", strerror(errno));
	PASS();
}
