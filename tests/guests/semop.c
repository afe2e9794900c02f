/* Blocked in semop(2), and semtimedop(2) with a time-out: no EINTR. */
#include "guest.h"
#include <sys/ipc.h>
#include <sys/sem.h>
static int id;

static void act(void *unused)
{
	(void)unused;
	struct sembuf up = { 0, 1, 0 };
	SYS(semop(id, &up, 1));
}

int main(void)
{
	id = SYS(semget(IPC_PRIVATE, 2, 0600));
	pid_t child = on_line(act, 0);
	ready();
	struct sembuf other = { 1, -1, 0 }, down = { 0, -1, 0 };
	struct timespec time = { 1, 500000000 };
	double begin = now(CLOCK_MONOTONIC);
	int n = semtimedop(id, &other, 1, &time);
	int error = errno;
	int m = n == -1 && error == EAGAIN ? semop(id, &down, 1) : 0;
	int second = errno;
	semctl(id, 0, IPC_RMID);
	CHECK(n == -1 && error == EAGAIN, "semtimedop gave %d: %s", n, strerror(error));
	CHECK(m == 0, "semop: %s", strerror(second));
	CHECK(now(CLOCK_MONOTONIC) - begin >= 1.498, "semtimedop ended early");
	reap(child);
	PASS();
}
