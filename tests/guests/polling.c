/* Waiting for descriptors: poll, select, epoll, with masks; and the descriptors made to be waited for. */
#include "behaviour.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

BEHAVIOUR(poll_says_what_is_ready, "poll")
{
	int ends[2], gone[2];
	SYS(pipe(ends));
	SYS(pipe(gone));
	close(gone[1]);
	CHECK(write(ends[1], "x", 1) == 1, "write");
	away();
	struct pollfd all[] = { { ends[0], POLLIN, 0 }, { ends[1], POLLOUT, 0 }, { gone[0], POLLIN, 0 }, { -1, POLLIN, 9 }, { 99, POLLIN, 0 } };
	SAME(poll(all, 5, 1000), 4);
	SAME(all[0].revents, POLLIN);
	SAME(all[1].revents, POLLOUT);
	SAME(all[2].revents, POLLHUP);
	SAME(all[3].revents, 0);
	SAME(all[4].revents, POLLNVAL);
	double begin = now(CLOCK_MONOTONIC);
	SAME(poll(all + 3, 1, 60), 0);
	check_elapsed("poll", begin, 0.06);
}

BEHAVIOUR(select_says_what_is_ready, "select pselect6")
{
	int ends[2];
	SYS(pipe(ends));
	CHECK(write(ends[1], "x", 1) == 1, "write");
	away();
	fd_set in, out;
	FD_ZERO(&in);
	FD_ZERO(&out);
	FD_SET(ends[0], &in), FD_SET(ends[1], &out), FD_SET(ends[1], &in);
	struct timeval none = { 0, 0 };
	SAME(syscall(SYS_select, ends[1] + 1, &in, &out, 0, &none), 2);
	CHECK(FD_ISSET(ends[0], &in) && !FD_ISSET(ends[1], &in) && FD_ISSET(ends[1], &out), "the sets");
	char c;
	SAME(read(ends[0], &c, 1), 1);
	FD_ZERO(&in);
	FD_SET(ends[0], &in);
	struct timespec time = { 0, 60000000 };
	double begin = now(CLOCK_MONOTONIC);
	SAME(pselect(ends[0] + 1, &in, 0, 0, &time, 0), 0);
	check_elapsed("pselect", begin, 0.06);
	CHECK(!FD_ISSET(ends[0], &in), "the set is not empty");
	FD_SET(60, &in);
	FAILS(syscall(SYS_select, 61, &in, 0, 0, &none), EBADF);
}

BEHAVIOUR(ppoll_opens_the_mask, "ppoll kill")
{
	handle(SIGUSR1, 0);
	block(SIG_BLOCK, SIGUSR1);
	away();
	SYS(kill(getpid(), SIGUSR1));
	SAME(handled, 0);
	sigset_t none;
	sigemptyset(&none);
	FAILS(ppoll(0, 0, &(struct timespec){ 5, 0 }, &none), EINTR);
	SAME(handled, 1);
	sigset_t mask;
	pthread_sigmask(SIG_BLOCK, 0, &mask);
	CHECK(sigismember(&mask, SIGUSR1), "the mask was not put back");
	SAME(ppoll(0, 0, &(struct timespec){ 0, 1000 }, &none), 0);
}

BEHAVIOUR(pselect_opens_the_mask, "pselect6")
{
	handle(SIGUSR1, SA_RESTART);
	block(SIG_BLOCK, SIGUSR1);
	SYS(kill(getpid(), SIGUSR1));
	away();
	sigset_t none;
	sigemptyset(&none);
	SAME(handled, 0);
	FAILS(pselect(0, 0, 0, 0, &(struct timespec){ 5, 0 }, &none), EINTR);
	SAME(handled, 1);
}

BEHAVIOUR(epoll_pwait_opens_the_mask, "epoll_pwait epoll_pwait2 epoll_create1")
{
	handle(SIGUSR1, 0);
	block(SIG_BLOCK, SIGUSR1);
	away();
	int poller = SYS(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event event;
	sigset_t none;
	sigemptyset(&none);
	SYS(kill(getpid(), SIGUSR1));
	FAILS(epoll_pwait(poller, &event, 1, 5000, &none), EINTR);
	SAME(handled, 1);
	SYS(kill(getpid(), SIGUSR1));
	struct timespec time = { 5, 0 };
	SAME(syscall(441 /* epoll_pwait2 */, poller, &event, 1, &time, &none, 8), -1);
	CHECK(errno == EINTR || errno == ENOSYS, "epoll_pwait2: %s", strerror(errno));
	SAME(handled, errno == EINTR ? 2 : 1);
}

BEHAVIOUR(epoll_level_edge_oneshot, "epoll_create epoll_ctl epoll_wait write")
{
	int poller = SYS(epoll_create1(0)), level[2], edge[2], shot[2];
	SYS(pipe(level));
	SYS(pipe(edge));
	SYS(pipe(shot));
	struct epoll_event e = { .events = EPOLLIN, .data.u64 = 0x1111222233334444 };
	SYS(epoll_ctl(poller, EPOLL_CTL_ADD, level[0], &e));
	e = (struct epoll_event){ .events = EPOLLIN | EPOLLET, .data.u32 = 2 };
	SYS(epoll_ctl(poller, EPOLL_CTL_ADD, edge[0], &e));
	away();
	e = (struct epoll_event){ .events = EPOLLIN | EPOLLONESHOT, .data.u32 = 3 };
	SYS(epoll_ctl(poller, EPOLL_CTL_ADD, shot[0], &e));
	FAILS(epoll_ctl(poller, EPOLL_CTL_ADD, shot[0], &e), EEXIST);
	struct epoll_event got[5];
	SAME(epoll_wait(poller, got, 5, 0), 0);
	SYS(close(SYS(syscall(SYS_epoll_create, 5))));
	CHECK(write(level[1], "x", 1) == 1 && write(edge[1], "x", 1) == 1 && write(shot[1], "x", 1) == 1, "write");
	SAME(epoll_wait(poller, got, 5, 1000), 3);
	SAME(epoll_wait(poller, got, 5, 0), 1);
	SAME(got[0].data.u64, 0x1111222233334444);
	CHECK(write(edge[1], "y", 1) == 1 && write(shot[1], "y", 1) == 1, "write");
	SAME(epoll_wait(poller, got, 5, 1000), 2);
	SAME(epoll_wait(poller, got, 1, 0), 1);
	SYS(epoll_ctl(poller, EPOLL_CTL_MOD, shot[0], &e));
	SYS(epoll_ctl(poller, EPOLL_CTL_DEL, level[0], 0));
	SAME(epoll_wait(poller, got, 5, 1000), 1);
	SAME(got[0].data.u32, 3);
	FAILS(epoll_ctl(poller, EPOLL_CTL_DEL, level[0], 0), ENOENT);
	FAILS(epoll_wait(poller, got, 0, 0), EINVAL);
}

BEHAVIOUR(eventfd_counts, "eventfd eventfd2 read write")
{
	int counter = SYS(eventfd(3, 0));
	away();
	uint64_t value = 4;
	SAME(write(counter, &value, 8), 8);
	SAME(read(counter, &value, 8), 8);
	SAME(value, 7);
	int semaphore = SYS(eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK)), old = SYS(syscall(SYS_eventfd, 1));
	SAME(read(semaphore, &value, 8), 8);
	SAME(value, 1);
	SAME(read(semaphore, &value, 8), 8);
	FAILS(read(semaphore, &value, 8), EAGAIN);
	SAME(read(old, &value, 8), 8);
	FAILS(read(old, &value, 4), EINVAL);
}

BEHAVIOUR(timerfd_expires, "timerfd_create timerfd_settime timerfd_gettime read")
{
	int early = SYS(timerfd_create(CLOCK_MONOTONIC, 0));
	struct itimerspec spec = { { 0, 20000000 }, { 0, 20000000 } }, rest;
	SYS(timerfd_settime(early, 0, &spec, 0));
	away();
	uint64_t times = 0;
	SAME(read(early, &times, 8), 8);
	CHECK(times >= 1, "it expired %ld times", (long)times);
	int timer = SYS(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	spec = (struct itimerspec){ { 0, 0 }, { 100, 0 } };
	SYS(timerfd_settime(timer, 0, &spec, 0));
	SYS(timerfd_gettime(timer, &rest));
	CHECK(rest.it_value.tv_sec >= 90 && rest.it_value.tv_sec <= 100, "%ld s are left", (long)rest.it_value.tv_sec);
	FAILS(read(timer, &times, 8), EAGAIN);
	spec.it_value.tv_sec = 0;
	SYS(timerfd_settime(timer, 0, &spec, &rest));
	CHECK(rest.it_value.tv_sec > 0, "the old value");
	FAILS(timerfd_create(99, 0), EINVAL);
}

BEHAVIOUR(inotify_tells, "inotify_init inotify_add_watch inotify_rm_watch read")
{
	own_folder();
	int early = SYS(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
	SYS(inotify_add_watch(early, ".", IN_CREATE));
	away();
	int late = SYS(syscall(SYS_inotify_init));
	int watch = SYS(inotify_add_watch(late, ".", IN_CREATE | IN_DELETE | IN_MOVE));
	close(SYS(open("made", O_CREAT | O_WRONLY, 0600)));
	SYS(rename("made", "moved"));
	SYS(unlink("moved"));
	char text[1000] __attribute__((aligned(8)));
	ssize_t n = SYS(read(late, text, sizeof text));
	uint32_t seen = 0, cookie = 0;
	for (ssize_t at = 0; at < n;) {
		struct inotify_event *event = (void *)(text + at);
		seen = seen * 0x1000 + event->mask;
		if (event->mask & IN_MOVED_FROM)
			cookie = event->cookie;
		if (event->mask & IN_MOVED_TO)
			SAME(event->cookie, cookie);
		at += sizeof *event + event->len;
	}
	SAME(seen, (((IN_CREATE * 0x1000u + IN_MOVED_FROM) * 0x1000) + IN_MOVED_TO) * 0x1000 + IN_DELETE);
	SYS(inotify_rm_watch(late, watch));
	SAME(read(late, text, sizeof text), 16);
	FAILS(inotify_rm_watch(late, watch), EINVAL);
	struct inotify_event *event = (void *)text;
	CHECK(read(early, text, sizeof text) > 0 && event->mask == IN_CREATE && !strcmp(event->name, "made"), "the first watch");
}

BEHAVIOUR(closed_on_exec_from_the_first_moment, "epoll_create1 inotify_init1 eventfd2 timerfd_create pipe2 fcntl")
{
	away();
	int fds[6] = { SYS(epoll_create1(EPOLL_CLOEXEC)), SYS(inotify_init1(IN_CLOEXEC)), SYS(eventfd(0, EFD_CLOEXEC)),
		       SYS(timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC)) };
	SYS(pipe2(fds + 4, O_CLOEXEC));
	for (int i = 0; i < 6; i++)
		SAME(fcntl(fds[i], F_GETFD), FD_CLOEXEC);
}

BEHAVIOUR(signalfd_made_away, "signalfd4")
{
	block(SIG_BLOCK, SIGUSR1);
	away();
	sigset_t set = set_of(SIGUSR1);
	int fd = SYS(signalfd(-1, &set, SFD_NONBLOCK));
	struct signalfd_siginfo info;
	FAILS(read(fd, &info, sizeof info), EAGAIN);
	SYS(kill(getpid(), SIGUSR1));
	SAME(read(fd, &info, sizeof info), sizeof info);
	SAME(info.ssi_signo, SIGUSR1);
	SAME(info.ssi_pid, getpid());
}

BEHAVIOUR(signalfd_made_at_home, "read poll")
{
	block(SIG_BLOCK, SIGUSR1);
	sigset_t set = set_of(SIGUSR1);
	int fd = SYS(signalfd(-1, &set, SFD_NONBLOCK));
	away();
	struct pollfd one = { fd, POLLIN, 0 };
	struct signalfd_siginfo info;
	SAME(poll(&one, 1, 0), 0);
	SYS(sigqueue(getpid(), SIGUSR1, (union sigval){ .sival_int = 5 }));
	SAME(poll(&one, 1, 1000), 1);
	SAME(read(fd, &info, sizeof info), sizeof info);
	SAME(info.ssi_int, 5);
	SAME(info.ssi_code, SI_QUEUE);
	FAILS(read(fd, &info, sizeof info), EAGAIN);
}
