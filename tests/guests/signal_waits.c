/* Signals that come while the process waits: which calls they end, and how. A child that stays at home sends them. */
#include "behaviour.h"
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>

static int go[2], number;
static pid_t sender;

/* A child that sends this signal a little after each word, and a second one behind it. */
static void start_sender(int signal)
{
	SYS(pipe(go));
	number = signal;
	pid_t parent = getpid();
	sender = SYS(fork());
	if (sender == 0) {
		char c;
		end_with(parent);
		close(go[1]);
		while (read(go[0], &c, 1) == 1) {
			usleep(50000);
			kill(parent, signal);
		}
		_exit(0);
	}
}

static void soon(void)
{
	CHECK(write(go[1], "g", 1) == 1, "write");
}

static void sent_by_the_child(int times)
{
	SAME(handled, times);
	SAME(handled_info.si_code, SI_USER);
	SAME(handled_info.si_pid, sender);
	SAME(handled_info.si_uid, getuid());
}

BEHAVIOUR(pause_ends, "write")
{
	handle(SIGUSR1, SA_RESTART);
	start_sender(SIGUSR1);
	away();
	soon();
	FAILS(pause(), EINTR);
	sent_by_the_child(1);
}

BEHAVIOUR(sigsuspend_ends, "write")
{
	handle(SIGUSR1, SA_RESTART);
	block(SIG_BLOCK, SIGUSR1);
	start_sender(SIGUSR1);
	away();
	sigset_t none;
	sigemptyset(&none);
	soon();
	FAILS(sigsuspend(&none), EINTR);
	sent_by_the_child(1);
	sigset_t mask;
	pthread_sigmask(SIG_BLOCK, 0, &mask);
	SAME(sigismember(&mask, SIGUSR1), 1);
	soon();
	usleep(100000);
	SAME(handled, 1);
	FAILS(sigsuspend(&none), EINTR);
	SAME(handled, 2);
}

BEHAVIOUR(read_ends_or_goes_on, "read rt_sigaction")
{
	int ends[2];
	SYS(pipe(ends));
	handle(SIGUSR1, 0);
	start_sender(SIGUSR1);
	away();
	char c;
	soon();
	FAILS(read(ends[0], &c, 1), EINTR);
	sent_by_the_child(1);
	/* With SA_RESTART the same read goes on; the handler writes what it waits for. */
	handle(SIGUSR1, SA_RESTART);
	CHECK(write(ends[1], "x", 1) == 1, "write");
	SAME(read(ends[0], &c, 1), 1);
}

static int handler_writes_to;

static void write_there(int signal)
{
	(void)signal;
	handled++;
	CHECK(write(handler_writes_to, "w", 1) == 1, "write");
}

BEHAVIOUR(restarted_read_gets_data, "read write")
{
	int ends[2];
	SYS(pipe(ends));
	handler_writes_to = ends[1];
	struct sigaction action = { .sa_handler = write_there, .sa_flags = SA_RESTART };
	SYS(sigaction(SIGUSR1, &action, 0));
	start_sender(SIGUSR1);
	away();
	char c = 0;
	soon();
	SAME(read(ends[0], &c, 1), 1);
	SAME(c, 'w');
	SAME(handled, 1);
}

BEHAVIOUR(polls_never_go_on, "poll select epoll_wait")
{
	handle(SIGUSR1, SA_RESTART);
	start_sender(SIGUSR1);
	int poller = SYS(epoll_create1(0));
	away();
	soon();
	FAILS(poll(0, 0, 10000), EINTR);
	soon();
	FAILS(syscall(SYS_select, 0, 0, 0, 0, 0), EINTR);
	soon();
	struct epoll_event event;
	FAILS(epoll_wait(poller, &event, 1, 10000), EINTR);
	sent_by_the_child(3);
}

BEHAVIOUR(semop_never_goes_on, "semop")
{
	handle(SIGUSR1, SA_RESTART);
	start_sender(SIGUSR1);
	int id = SYS(semget(IPC_PRIVATE, 1, 0600));
	away();
	soon();
	struct sembuf take = { 0, -1, 0 };
	FAILS(syscall(SYS_semop, id, &take, 1), EINTR);
	sent_by_the_child(1);
	SYS(semctl(id, 0, IPC_RMID));
}

BEHAVIOUR(socket_calls_end, "recvfrom accept connect")
{
	handle(SIGUSR1, 0);
	start_sender(SIGUSR1);
	int pair[2], server = SYS(socket(AF_INET, SOCK_STREAM, 0)), client = SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	SYS(listen(server, 1));
	away();
	char c;
	soon();
	FAILS(recv(pair[0], &c, 1, 0), EINTR);
	soon();
	FAILS(accept(server, 0, 0), EINTR);
	sent_by_the_child(2);
	struct sockaddr address;
	socklen_t length = sizeof address;
	SYS(getsockname(server, &address, &length));
	SYS(connect(client, &address, length));
}

BEHAVIOUR(ignored_signals_end_nothing, "read rt_sigaction")
{
	int ends[2], late[2];
	SYS(pipe(ends));
	SYS(pipe(late));
	start_sender(SIGUSR2);
	pid_t parent = getpid(), writer = SYS(fork());
	if (writer == 0) {
		char c;
		end_with(parent);
		close(late[1]);
		_exit(read(late[0], &c, 1) == 1 && usleep(200000) == 0 && write(ends[1], "x", 1) == 1 ? 0 : 1);
	}
	away();
	signal(SIGUSR2, SIG_IGN);
	soon();
	CHECK(write(late[1], "g", 1) == 1, "write");
	char c;
	SAME(read(ends[0], &c, 1), 1);
	reap(writer);
}

BEHAVIOUR(stopped_and_continued_in_a_read, "read")
{
	int ends[2], word[2];
	SYS(pipe(ends));
	SYS(pipe(word));
	pid_t parent = getpid(), child = SYS(fork());
	if (child == 0) {
		char c;
		end_with(parent);
		close(word[1]);
		if (read(word[0], &c, 1) != 1)
			_exit(1);
		usleep(50000);
		kill(parent, SIGSTOP);
		usleep(100000);
		kill(parent, SIGCONT);
		usleep(50000);
		_exit(write(ends[1], "x", 1) == 1 ? 0 : 1);
	}
	handle(SIGCONT, SA_RESTART);
	away();
	CHECK(write(word[1], "g", 1) == 1, "write");
	char c;
	SAME(read(ends[0], &c, 1), 1);
	SAME(handled, 1);
	reap(child);
}

BEHAVIOUR(sigwait_from_home, "write")
{
	block(SIG_BLOCK, SIGUSR1);
	start_sender(SIGUSR1);
	away();
	soon();
	sigset_t set = set_of(SIGUSR1);
	siginfo_t info;
	SAME(sigwaitinfo(&set, &info), SIGUSR1);
	SAME(info.si_pid, sender);
	SAME(info.si_code, SI_USER);
	FAILS(sigtimedwait(&set, &info, &(struct timespec){ 0, 20000000 }), EAGAIN);
}

static volatile int taker;
static void which_thread(int signal)
{
	(void)signal;
	taker = gettid();
}

static void *only_taker(void *at)
{
	block(SIG_UNBLOCK, SIGUSR1);
	*(volatile pid_t *)at = gettid();
	while (!taker)
		usleep(1000);
	return 0;
}

BEHAVIOUR(process_signal_finds_the_open_thread, "write")
{
	static volatile pid_t tid;
	struct sigaction action = { .sa_handler = which_thread };
	SYS(sigaction(SIGUSR1, &action, 0));
	block(SIG_BLOCK, SIGUSR1);
	pthread_t thread;
	start_sender(SIGUSR1);
	CHECK(pthread_create(&thread, 0, only_taker, (void *)&tid) == 0, "pthread_create");
	while (!tid)
		usleep(1000);
	away();
	soon();
	pthread_join(thread, 0);
	SAME(taker, tid);
}

BEHAVIOUR(only_the_call_s_mask_lets_it_in, "ppoll pselect6 epoll_pwait")
{
	handle(SIGUSR1, SA_RESTART);
	block(SIG_BLOCK, SIGUSR1);
	start_sender(SIGUSR1);
	int poller = SYS(epoll_create1(0));
	sigset_t none;
	sigemptyset(&none);
	away();
	/* It comes while the thread waits. */
	struct epoll_event event;
	soon();
	FAILS(ppoll(0, 0, 0, &none), EINTR);
	soon();
	FAILS(pselect(0, 0, 0, 0, 0, &none), EINTR);
	soon();
	FAILS(epoll_pwait(poller, &event, 1, -1, &none), EINTR);
	sent_by_the_child(3);
	sigset_t mask;
	pthread_sigmask(SIG_BLOCK, 0, &mask);
	SAME(sigismember(&mask, SIGUSR1), 1);
}
