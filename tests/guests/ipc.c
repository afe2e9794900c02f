/* System V semaphores, queues and segments; POSIX message queues. */
#include "behaviour.h"
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

union semun {
	int val;
	struct semid_ds *buf;
	unsigned short *array;
};

BEHAVIOUR(semaphores, "semget semtimedop semctl")
{
	int early = SYS(semget(IPC_PRIVATE, 2, 0600));
	SYS(semctl(early, 0, SETVAL, (union semun){ .val = 5 }));
	away();
	struct sembuf two[] = { { 0, -3, 0 }, { 1, 1, 0 } };
	SYS(semop(early, two, 2));
	SAME(semctl(early, 0, GETVAL), 2);
	SAME(semctl(early, 1, GETVAL), 1);
	SAME(semctl(early, 0, GETPID), getpid());
	struct sembuf more = { 0, -3, 0 };
	double begin = now(CLOCK_MONOTONIC);
	FAILS(semtimedop(early, &more, 1, &(struct timespec){ 0, 50000000 }), EAGAIN);
	check_elapsed("semtimedop", begin, 0.05);
	more.sem_flg = IPC_NOWAIT;
	FAILS(semop(early, &more, 1), EAGAIN);
	struct semid_ds about;
	SYS(semctl(early, 0, IPC_STAT, (union semun){ .buf = &about }));
	SAME(about.sem_nsems, 2);
	int late = SYS(semget(IPC_PRIVATE, 1, 0600 | IPC_CREAT));
	SAME(semctl(late, 0, GETVAL), 0);
	SYS(semctl(late, 0, IPC_RMID));
	FAILS(semctl(late, 0, GETVAL), EINVAL);
	SYS(semctl(early, 0, IPC_RMID));
}

BEHAVIOUR(all_semaphores_at_once, "semctl")
{
	int id = SYS(semget(IPC_PRIVATE, 3, 0600));
	away();
	unsigned short values[] = { 7, 8, 9 }, found[3];
	SAME(semctl(id, 0, GETVAL), 0);
	SYS(semctl(id, 0, SETALL, (union semun){ .array = values }));
	SYS(semctl(id, 0, GETALL, (union semun){ .array = found }));
	SAME(memcmp(values, found, sizeof values), 0);
	SYS(semctl(id, 0, IPC_RMID));
}

BEHAVIOUR(semaphores_are_undone, "semtimedop wait4")
{
	/* SEM_UNDO of a child, which ends while its parent is away. */
	int id = SYS(semget(IPC_PRIVATE, 1, 0600)), go[2];
	SYS(pipe(go));
	SYS(semctl(id, 0, SETVAL, (union semun){ .val = 1 }));
	pid_t child = SYS(fork());
	if (child == 0) {
		char c;
		close(go[1]);
		struct sembuf take = { 0, -1, SEM_UNDO };
		_exit(semop(id, &take, 1) == 0 && read(go[0], &c, 1) == 1 ? 0 : 1);
	}
	while (semctl(id, 0, GETVAL) != 0)
		usleep(1000);
	away();
	CHECK(write(go[1], "g", 1) == 1, "write");
	struct sembuf take = { 0, -1, 0 };
	SYS(semop(id, &take, 1));
	reap(child);
	SYS(semctl(id, 0, IPC_RMID));
}

struct message {
	long type;
	char text[100];
};

BEHAVIOUR(queue_by_types, "msgget msgsnd msgrcv msgctl")
{
	int id = SYS(msgget(IPC_PRIVATE, 0600));
	struct message m = { 3, "early" };
	SYS(msgsnd(id, &m, 6, 0));
	away();
	m = (struct message){ 5, "five" };
	SYS(msgsnd(id, &m, 5, 0));
	m = (struct message){ 2, "two and more" };
	SYS(msgsnd(id, &m, 13, IPC_NOWAIT));
	struct msqid_ds about;
	SYS(msgctl(id, IPC_STAT, &about));
	SAME(about.msg_qnum, 3);
	SAME(about.msg_lspid, getpid());
	SAME(msgrcv(id, &m, 100, 5, 0), 5);
	CHECK(!strcmp(m.text, "five"), "it says %s", m.text);
	/* A negative type: the lowest up to it. */
	FAILS(msgrcv(id, &m, 5, -4, 0), E2BIG);
	SAME(msgrcv(id, &m, 3, -4, MSG_NOERROR), 3);
	SAME(m.type, 2);
	SAME(msgrcv(id, &m, 100, 0, 0), 6);
	SAME(m.type, 3);
	FAILS(msgrcv(id, &m, 100, 0, IPC_NOWAIT), ENOMSG);
	m.type = 0;
	FAILS(msgsnd(id, &m, 1, 0), EINVAL);
	int late = SYS(msgget(IPC_PRIVATE, IPC_CREAT | 0600));
	SYS(msgctl(late, IPC_RMID, 0));
	SYS(msgctl(id, IPC_RMID, 0));
	FAILS(msgrcv(id, &m, 1, 0, 0), EINVAL);
}

BEHAVIOUR(queue_is_waited_for, "msgrcv msgsnd wait4")
{
	int id = SYS(msgget(IPC_PRIVATE, 0600)), go[2];
	SYS(pipe(go));
	pid_t child = SYS(fork());
	if (child == 0) {
		char c;
		close(go[1]);
		if (read(go[0], &c, 1) != 1)
			_exit(1);
		usleep(50000);
		struct message m = { 9, "from the child" };
		_exit(msgsnd(id, &m, 15, 0) == 0 ? 0 : 1);
	}
	away();
	struct message m = { 8, "for nobody" };
	SYS(msgsnd(id, &m, 11, 0));
	CHECK(write(go[1], "g", 1) == 1, "write");
	SAME(msgrcv(id, &m, 100, 9, 0), 15);
	CHECK(!strcmp(m.text, "from the child"), "it says %s", m.text);
	reap(child);
	SYS(msgctl(id, IPC_RMID, 0));
}

BEHAVIOUR(segments_are_made_and_asked_about, "shmget shmctl")
{
	int id = SYS(shmget(IPC_PRIVATE, 8192, 0600));
	away();
	struct shmid_ds about;
	SYS(shmctl(id, IPC_STAT, &about));
	SAME(about.shm_segsz, 8192);
	SAME(about.shm_cpid, getpid());
	SAME(about.shm_nattch, 0);
	int late = SYS(shmget(IPC_PRIVATE, 100, IPC_CREAT | 0640));
	SYS(shmctl(late, IPC_STAT, &about));
	SAME(about.shm_perm.mode & 0777, 0640);
	SYS(shmctl(late, IPC_RMID, 0));
	SYS(shmctl(id, IPC_RMID, 0));
	FAILS(shmctl(id, IPC_STAT, &about), EINVAL);
}

static char queue[60];

static mqd_t open_queue(int flags)
{
	struct mq_attr attributes = { .mq_maxmsg = 4, .mq_msgsize = 32 };
	snprintf(queue, sizeof queue, "/mosix-guest-%d", getpid());
	return SYS(mq_open(queue, O_RDWR | O_CREAT | O_EXCL | flags, 0600, &attributes));
}

BEHAVIOUR(posix_queue_by_priority, "mq_open mq_timedsend mq_timedreceive mq_getsetattr mq_unlink")
{
	mqd_t early = open_queue(0);
	SYS(mq_send(early, "low", 3, 1));
	away();
	mqd_t late = SYS(mq_open(queue, O_RDWR | O_NONBLOCK));
	SYS(mq_send(late, "high", 4, 9));
	char text[32];
	unsigned priority;
	BYTES(text, mq_receive(early, text, 32, &priority), "high");
	SAME(priority, 9);
	BYTES(text, mq_receive(late, text, 32, &priority), "low");
	FAILS(mq_receive(late, text, 32, 0), EAGAIN);
	FAILS(mq_receive(late, text, 5, 0), EMSGSIZE);
	struct mq_attr attributes;
	SYS(mq_getattr(late, &attributes));
	SAME(attributes.mq_msgsize * 100 + attributes.mq_maxmsg, 3204);
	SAME(attributes.mq_flags, O_NONBLOCK);
	struct timespec past = { 1, 0 };
	FAILS(mq_timedreceive(early, text, 32, 0, &past), ETIMEDOUT);
	SYS(mq_unlink(queue));
	FAILS(mq_open(queue, O_RDWR), ENOENT);
	SYS(mq_send(early, "still", 5, 0));
}

BEHAVIOUR(posix_queue_is_polled, "poll mq_timedsend")
{
	mqd_t fd = open_queue(O_NONBLOCK);
	SYS(mq_unlink(queue));
	away();
	struct pollfd one = { fd, POLLIN | POLLOUT, 0 };
	SAME(poll(&one, 1, 0), 1);
	SAME(one.revents, POLLOUT);
	for (int i = 0; i < 4; i++)
		SYS(mq_send(fd, "x", 1, 0));
	FAILS(mq_send(fd, "x", 1, 0), EAGAIN);
	SAME(poll(&one, 1, 0), 1);
	SAME(one.revents, POLLIN);
}

BEHAVIOUR(posix_queue_notifies, "mq_notify")
{
	mqd_t fd = open_queue(0);
	SYS(mq_unlink(queue));
	handle(SIGUSR1, 0);
	away();
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 6 };
	SYS(mq_notify(fd, &event));
	SYS(mq_send(fd, "x", 1, 0));
	for (int i = 0; i < 1000 && !handled; i++)
		usleep(1000);
	SAME(handled_info.si_code, SI_MESGQ);
	SAME(handled_info.si_value.sival_int, 6);
}
