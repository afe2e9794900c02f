/* semtimedop(2) and mq_timedreceive(3) end by their time-outs, exactly, and by what they wait for. */
#include "guest.h"
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/sem.h>
static int set;

static void act(void *unused)
{
	(void)unused;
	struct sembuf up = { .sem_op = 1 };
	SYS(semop(set, &up, 1));
}

int main(void)
{
	set = SYS(semget(IPC_PRIVATE, 1, 0600));
	char name[64];
	snprintf(name, sizeof name, "/mosix-guest-%d", (int)getpid());
	struct mq_attr size = { .mq_maxmsg = 2, .mq_msgsize = 32 };
	mqd_t queue = SYS(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &size));
	SYS(mq_unlink(name));
	pid_t child = on_line(act, 0);
	ready();
	struct sembuf down = { .sem_op = -1 }, other = { .sem_op = -5 };
	struct timespec time = { 1, 500000000 };
	double begin = now(CLOCK_MONOTONIC);
	int n = semtimedop(set, &other, 1, &time);
	int error = errno;
	double first = now(CLOCK_MONOTONIC) - begin;
	if (n != -1 || error != EAGAIN) {
		semctl(set, 0, IPC_RMID);
		FAIL("semtimedop gave %d after %.3f s: %s", n, first, strerror(error));
	}
	char text[32];
	double end = now(CLOCK_REALTIME) + 1.5;
	struct timespec until = { (time_t)end, (long)((end - (time_t)end) * 1e9) };
	double second = now(CLOCK_MONOTONIC);
	ssize_t length = mq_timedreceive(queue, text, sizeof text, 0, &until);
	error = errno;
	second = now(CLOCK_MONOTONIC) - second;
	time = (struct timespec){ 60, 0 };
	n = semtimedop(set, &down, 1, &time);
	semctl(set, 0, IPC_RMID);
	CHECK(n == 0, "the second semtimedop gave %d", n);
	CHECK(length == -1 && error == ETIMEDOUT, "mq_timedreceive gave %ld after %.3f s: %s", (long)length, second,
	      strerror(error));
	check_took("semtimedop", first, 1.5);
	check_took("mq_timedreceive", second, 1.5);
	reap(child);
	PASS();
}
