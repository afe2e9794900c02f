/* Handlers run on the alternate stack that was set before the moves, also for a real stack overflow after them. */
#include "guest.h"
#include <setjmp.h>
#define SIZE (64 << 10)
static char *stack;
static volatile int runs, where_wrong;
static sigjmp_buf back;
static void *volatile fault;

static int on_it(void)
{
	char here;
	return &here >= stack && &here < stack + SIZE;
}

static void usr(int number)
{
	(void)number;
	runs++;
	where_wrong |= !on_it();
}

static void segv(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	where_wrong |= !on_it();
	fault = info->si_addr;
	siglongjmp(back, 1);
}

static int overflow(volatile int depth)
{
	volatile char room[4096];
	room[0] = (char)depth;
	/* Never reached: the stack ends first. */
	return depth < 0 ? 0 : overflow(depth + 1) + room[0];
}

int main(void)
{
	stack = SYS(mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	stack_t new = { .ss_sp = stack, .ss_size = SIZE }, old;
	SYS(sigaltstack(&new, 0));
	struct sigaction action = { .sa_handler = usr, .sa_flags = SA_ONSTACK };
	SYS(sigaction(SIGUSR1, &action, 0));
	action.sa_sigaction = segv;
	action.sa_flags = SA_ONSTACK | SA_SIGINFO;
	SYS(sigaction(SIGSEGV, &action, 0));
	ready();
	int rounds = 0;
	do {
		raise(SIGUSR1);
		rounds++;
		usleep(500);
	} while (!told());
	SYS(sigaltstack(0, &old));
	CHECK(old.ss_sp == stack && old.ss_size == SIZE && old.ss_flags == 0, "sigaltstack: %p, %zu, %x", old.ss_sp,
	      old.ss_size, old.ss_flags);
	if (sigsetjmp(back, 1) == 0)
		overflow(0);
	CHECK(fault != 0, "the overflow had no address");
	if (sigsetjmp(back, 1) == 0)
		*(volatile char *)16 = 1;
	CHECK(fault == (void *)16, "fault address %p instead of 0x10", fault);
	CHECK(runs == rounds && !where_wrong, "%d handlers of %d, elsewhere: %d", runs, rounds, where_wrong);
	PASS();
}
