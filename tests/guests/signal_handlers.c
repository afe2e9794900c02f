/* Handlers: flags, masks, nesting, stacks, faults. */
#include "behaviour.h"
#include <setjmp.h>
#include <sys/auxv.h>
#include <ucontext.h>

BEHAVIOUR(reset_after_one, "kill")
{
	handle(SIGUSR1, SA_RESETHAND);
	away();
	SYS(kill(getpid(), SIGUSR1));
	SAME(handled, 1);
	struct sigaction action;
	SYS(sigaction(SIGUSR1, 0, &action));
	SAME((intptr_t)action.sa_handler, (intptr_t)SIG_DFL);
}

static int depth, deepest, runs;

static void nested(int signal)
{
	if (++depth > deepest)
		deepest = depth;
	if (++runs < 3)
		kill(getpid(), signal);
	depth--;
}

BEHAVIOUR(blocked_in_its_own_handler, "kill")
{
	struct sigaction action = { .sa_handler = nested };
	SYS(sigaction(SIGUSR1, &action, 0));
	away();
	/* It sends itself two more; each comes when the handler has returned. */
	SYS(kill(getpid(), SIGUSR1));
	SAME(runs, 3);
	SAME(deepest, 1);
}

BEHAVIOUR(nodefer_nests, "kill rt_sigaction")
{
	away();
	struct sigaction action = { .sa_handler = nested, .sa_flags = SA_NODEFER };
	SYS(sigaction(SIGUSR1, &action, 0));
	SYS(kill(getpid(), SIGUSR1));
	SAME(deepest, 3);
}

static char trace[50];

static void note(int signal)
{
	strcat(trace, signal == SIGUSR1 ? "(1" : "(2");
	if (signal == SIGUSR1)
		kill(getpid(), SIGUSR2);
	strcat(trace, ")");
}

BEHAVIOUR(handler_in_a_handler, "kill")
{
	struct sigaction action = { .sa_handler = note };
	SYS(sigaction(SIGUSR1, &action, 0));
	SYS(sigaction(SIGUSR2, &action, 0));
	away();
	SYS(kill(getpid(), SIGUSR1));
	CHECK(!strcmp(trace, "(1(2))"), "the handlers ran as %s", trace);
	/* With the other one in its mask it has to wait. */
	sigaddset(&action.sa_mask, SIGUSR2);
	SYS(sigaction(SIGUSR1, &action, 0));
	trace[0] = 0;
	SYS(kill(getpid(), SIGUSR1));
	CHECK(!strcmp(trace, "(1)(2)"), "the handlers ran as %s", trace);
}

static char *alternate, *seen_at;

static void look_at_stack(int signal)
{
	(void)signal;
	char here;
	seen_at = &here;
	handled++;
}

static void *on_own_stack(void *unused)
{
	(void)unused;
	size_t size = 64 << 10;
	char *mine = malloc(size);
	stack_t stack = { .ss_sp = mine, .ss_size = size }, now_;
	SYS(sigaltstack(&stack, 0));
	SYS(sigaltstack(0, &now_));
	CHECK(now_.ss_sp == mine, "another stack");
	pthread_kill(pthread_self(), SIGUSR2);
	return (void *)(intptr_t)(seen_at >= mine && seen_at < mine + size);
}

BEHAVIOUR(alternate_stack_of_each_thread, "tgkill")
{
	size_t size = 64 << 10;
	alternate = malloc(size);
	stack_t stack = { .ss_sp = alternate, .ss_size = size };
	SYS(sigaltstack(&stack, 0));
	struct sigaction action = { .sa_handler = look_at_stack, .sa_flags = SA_ONSTACK };
	SYS(sigaction(SIGUSR2, &action, 0));
	away();
	raise(SIGUSR2);
	CHECK(seen_at >= alternate && seen_at < alternate + size, "not on the alternate stack");
	pthread_t thread;
	void *fine;
	CHECK(pthread_create(&thread, 0, on_own_stack, 0) == 0, "pthread_create");
	pthread_join(thread, &fine);
	SAME((intptr_t)fine, 1);
}

static sigjmp_buf out;
static siginfo_t fault;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	(void)context;
	fault = *info;
	siglongjmp(out, signal);
}

static void catch(int signal)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	SYS(sigaction(signal, &action, 0));
}

BEHAVIOUR(fault_addresses, "kill")
{
	catch(SIGSEGV);
	char *page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	away();
	if (!sigsetjmp(out, 1)) {
		*(volatile char *)(page + 123) = 1;
		FAIL("a read-only page was written");
	}
	SAME(fault.si_addr - (void *)page, 123);
	SAME(fault.si_code, SEGV_ACCERR);
	SYS(munmap(page, 4096));
	if (!sigsetjmp(out, 1)) {
		(void)*(volatile char *)(page + 45);
		FAIL("a page that is not there was read");
	}
	SAME(fault.si_addr - (void *)page, 45);
	SAME(fault.si_code, SEGV_MAPERR);
	if (!sigsetjmp(out, 1)) {
		(void)*(volatile char *)0x8000000000000000;
		FAIL("no address");
	}
	SAME(fault.si_code, SI_KERNEL);
	SYS(kill(getpid(), 0));
}

BEHAVIOUR(division_by_zero, "")
{
	catch(SIGFPE);
	away();
	volatile int zero = 0;
	if (!sigsetjmp(out, 1)) {
		volatile int n = 100 / zero;
		FAIL("100 / 0 is %d", n);
	}
	SAME(fault.si_code, FPE_INTDIV);
}

BEHAVIOUR(beyond_the_end_of_a_file, "ftruncate")
{
	own_folder();
	catch(SIGBUS);
	int fd = file_with("f", "some bytes");
	char *map = mmap(0, 8192, PROT_READ, MAP_PRIVATE, fd, 0);
	away();
	SAME(map[3], 'e');
	SYS(ftruncate(fd, 20));
	if (!sigsetjmp(out, 1)) {
		(void)*(volatile char *)(map + 5000);
		FAIL("there is nothing to read");
	}
	SAME(fault.si_addr - (void *)map, 5000);
	SAME(fault.si_code, BUS_ADRERR);
}

BEHAVIOUR(illegal_instruction, "")
{
	catch(SIGILL);
	away();
	void *volatile at = 0;
	if (!sigsetjmp(out, 1)) {
		at = &&here;
	here:
		__asm__ volatile("ud2");
	}
	SAME(fault.si_code, ILL_ILLOPN);
	CHECK(at != 0 && labs((char *)fault.si_addr - (char *)at) < 16, "at %p, not %p", fault.si_addr, at);
}

static void change_result(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info;
	ucontext_t *u = context;
	sigaddset(&u->uc_sigmask, SIGUSR2);
	u->uc_mcontext.gregs[REG_R12] = 0x7777;
}

BEHAVIOUR(handler_changes_registers_and_mask, "tgkill")
{
	struct sigaction action = { .sa_sigaction = change_result, .sa_flags = SA_SIGINFO };
	SYS(sigaction(SIGUSR1, &action, 0));
	away();
	uint64_t found;
	__asm__ volatile("xor %%r12d, %%r12d\n\tsyscall\n\tmov %%r12, %0"
			 : "=r"(found)
			 : "a"(SYS_tgkill), "D"(getpid()), "S"(gettid()), "d"(SIGUSR1)
			 : "r12", "rcx", "r11", "memory");
	SAME(found, 0x7777);
	sigset_t mask;
	pthread_sigmask(SIG_BLOCK, 0, &mask);
	SAME(sigismember(&mask, SIGUSR2), 1);
}

BEHAVIOUR(long_jump_out_of_a_handler, "kill")
{
	catch(SIGUSR1);
	away();
	for (int i = 0; i < 3; i++)
		if (!sigsetjmp(out, 1)) {
			kill(getpid(), SIGUSR1);
			FAIL("no signal came");
		}
	sigset_t mask;
	pthread_sigmask(SIG_BLOCK, 0, &mask);
	SAME(sigismember(&mask, SIGUSR1), 0);
}
