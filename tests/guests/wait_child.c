/* Blocked in waitpid(2) for a child that stays at home, then told of it by SIGCHLD with the right siginfo. */
#include "guest.h"
static volatile sig_atomic_t code, status, who;

static void handler(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	code = info->si_code;
	status = info->si_status;
	who = info->si_pid;
}

static void act(void *unused)
{
	(void)unused;
	_exit(55);
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART };
	SYS(sigaction(SIGCHLD, &action, 0));
	pid_t child = on_line(act, 0);
	ready();
	int how;
	pid_t got = waitpid(child, &how, 0);
	CHECK(got == child && WIFEXITED(how) && WEXITSTATUS(how) == 55, "waitpid gave %d (%s), status %#x", got,
	      strerror(errno), how);
	for (int i = 0; i < 1000 && !who; i++)
		usleep(1000);
	CHECK(who == child && code == CLD_EXITED && status == 55, "SIGCHLD: pid %d, code %d, status %d", (int)who, (int)code,
	      (int)status);
	PASS();
}
