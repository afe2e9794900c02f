/* Sockets of the machine itself: streams, datagrams, packets, descriptors and credentials in messages. */
#include "behaviour.h"
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

BEHAVIOUR(pair_of_streams, "sendto recvfrom shutdown socketpair read")
{
	int pair[2], other[2];
	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	SAME(send(pair[0], "early ", 6, 0), 6);
	away();
	SAME(send(pair[0], "late", 4, MSG_NOSIGNAL), 4);
	char text[20];
	BYTES(text, recv(pair[1], text, 8, MSG_PEEK), "early la");
	BYTES(text, recv(pair[1], text, 10, MSG_WAITALL), "early late");
	FAILS(recv(pair[1], text, 10, MSG_DONTWAIT), EAGAIN);
	SYS(shutdown(pair[0], SHUT_WR));
	SAME(read(pair[1], text, 10), 0);
	FAILS(send(pair[0], "x", 1, MSG_NOSIGNAL), EPIPE);
	SAME(send(pair[1], "back", 4, 0), 4);
	BYTES(text, recv(pair[0], text, 20, 0), "back");
	SYS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, other));
	FAILS(recv(other[0], text, 1, 0), EAGAIN);
}

static struct sockaddr_un named(const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	strcpy(address.sun_path, name);
	return address;
}

BEHAVIOUR(stream_server_by_name, "socket bind listen accept accept4 connect getsockname getpeername getsockopt")
{
	own_folder();
	away();
	struct sockaddr_un address = named("server"), found = { 0 };
	socklen_t length = sizeof found;
	int server = SYS(socket(AF_UNIX, SOCK_STREAM, 0)), client = SYS(socket(AF_UNIX, SOCK_STREAM, 0)),
	    second = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
	SYS(bind(server, (void *)&address, sizeof address));
	FAILS(connect(client, (void *)&address, sizeof address), ECONNREFUSED);
	SYS(listen(server, 5));
	SYS(connect(client, (void *)&address, sizeof address));
	SYS(connect(second, (void *)&address, sizeof address));
	int got = SYS(accept4(server, (void *)&found, &length, SOCK_CLOEXEC)), more = SYS(syscall(SYS_accept, server, 0, 0));
	SAME(length, 2);
	SAME(fcntl(got, F_GETFD), FD_CLOEXEC);
	SAME(fcntl(more, F_GETFD), 0);
	length = sizeof found;
	SYS(getsockname(got, (void *)&found, &length));
	CHECK(length == 9 && !strcmp(found.sun_path, "server"), "the name is %s (%d)", found.sun_path, (int)length);
	length = 4;
	memset(&found, 0, sizeof found);
	SYS(getpeername(client, (void *)&found, &length));
	SAME(length, 9);
	SAME(found.sun_path[1] * 256 + found.sun_path[2], 'e' * 256);
	struct ucred who;
	length = sizeof who;
	SYS(getsockopt(client, SOL_SOCKET, SO_PEERCRED, &who, &length));
	SAME(who.pid, getpid());
	SAME(who.uid, geteuid());
}

BEHAVIOUR(datagrams_keep_their_borders, "sendto recvfrom bind")
{
	own_folder();
	struct sockaddr_un address = named("a"), from;
	int one = SYS(socket(AF_UNIX, SOCK_DGRAM, 0)), two = SYS(socket(AF_UNIX, SOCK_DGRAM, 0));
	SYS(bind(one, (void *)&address, sizeof address));
	away();
	struct sockaddr_un other = named("b");
	SYS(bind(two, (void *)&other, sizeof other));
	SAME(sendto(two, "first", 5, 0, (void *)&address, sizeof address), 5);
	SAME(sendto(two, "", 0, 0, (void *)&address, sizeof address), 0);
	SAME(sendto(two, "third one", 9, 0, (void *)&address, sizeof address), 9);
	char text[20];
	socklen_t length = sizeof from;
	BYTES(text, recvfrom(one, text, 20, 0, (void *)&from, &length), "first");
	SAME(length, 4);
	CHECK(!strcmp(from.sun_path, "b"), "from %s", from.sun_path);
	SAME(recv(one, text, 20, 0), 0);
	SAME(recv(one, text, 3, MSG_TRUNC), 9);
	FAILS(sendto(two, "x", 1, 0, (void *)&(struct sockaddr_un){ AF_UNIX, "none" }, sizeof from), ENOENT);
}

BEHAVIOUR(packets, "sendmsg recvmsg")
{
	int pair[2];
	SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	SAME(send(pair[0], "one", 3, 0), 3);
	away();
	struct iovec out[] = { { "tw", 2 }, { "o parts", 7 } };
	struct msghdr message = { .msg_iov = out, .msg_iovlen = 2 };
	SAME(sendmsg(pair[0], &message, MSG_EOR), 9);
	char a[4], b[4];
	struct iovec in[] = { { a, 4 }, { b, 4 } };
	message = (struct msghdr){ .msg_iov = in, .msg_iovlen = 2 };
	SAME(recvmsg(pair[1], &message, 0), 3);
	SAME(message.msg_flags & MSG_TRUNC, 0);
	SAME(recvmsg(pair[1], &message, 0), 8);
	SAME(message.msg_flags & MSG_TRUNC, MSG_TRUNC);
	BYTES(a, 4, "two ");
	BYTES(b, 4, "part");
}

static ssize_t send_fds(int to, const int *fds, int count)
{
	union {
		char room[CMSG_SPACE(10 * sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec part = { "d", 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(count * sizeof(int)) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	*head = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(count * sizeof(int)) };
	memcpy(CMSG_DATA(head), fds, count * sizeof(int));
	return sendmsg(to, &message, 0);
}

static int receive_fds(int from, int *fds, int flags)
{
	union {
		char room[CMSG_SPACE(10 * sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	char c;
	struct iovec part = { &c, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	SAME(recvmsg(from, &message, flags), 1);
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	CHECK(head && head->cmsg_type == SCM_RIGHTS, "no descriptors came");
	int count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	memcpy(fds, CMSG_DATA(head), count * sizeof(int));
	return count;
}

BEHAVIOUR(descriptors_in_messages, "sendmsg recvmsg read")
{
	int pair[2], ends[2], fds[10];
	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	SYS(pipe(ends));
	SAME(send_fds(pair[0], ends, 1), 1);
	away();
	/* One that was under way, and two that are sent now. */
	SAME(receive_fds(pair[1], fds, 0), 1);
	CHECK(write(ends[1], "abc", 3) == 3, "write");
	char c[3];
	SAME(read(fds[0], c, 1), 1);
	SAME(c[0], 'a');
	SAME(send_fds(pair[0], ends, 2), 1);
	close(ends[0]);
	SAME(receive_fds(pair[1], fds, MSG_CMSG_CLOEXEC), 2);
	SAME(fcntl(fds[0], F_GETFD), FD_CLOEXEC);
	SAME(read(fds[0], c, 1), 1);
	SAME(c[0], 'b');
	SAME(write(fds[1], "d", 1), 1);
	int bad = 99;
	FAILS(send_fds(pair[0], &bad, 1), EBADF);
}

BEHAVIOUR(credentials_in_messages, "setsockopt sendmsg recvmsg")
{
	int pair[2], on = 1;
	SYS(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	away();
	SYS(setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
	union {
		char room[CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} control = { 0 };
	char text[10];
	struct iovec part = { "who", 3 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	*head = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_CREDENTIALS, .cmsg_len = CMSG_LEN(sizeof(struct ucred)) };
	struct ucred who = { getpid(), geteuid(), getegid() };
	memcpy(CMSG_DATA(head), &who, sizeof who);
	SAME(sendmsg(pair[0], &message, 0), 3);
	SAME(send(pair[0], "again", 5, 0), 5);
	for (int i = 0; i < 2; i++) {
		memset(&control, 0, sizeof control);
		part = (struct iovec){ text, 10 };
		message.msg_controllen = sizeof control;
		SAME(recvmsg(pair[1], &message, 0), i ? 5 : 3);
		CHECK(head->cmsg_type == SCM_CREDENTIALS, "no credentials came");
		memcpy(&who, CMSG_DATA(head), sizeof who);
		SAME(who.pid, getpid());
		SAME(who.uid, geteuid());
	}
	if (geteuid() != 0) {
		who.pid = 1;
		memcpy(CMSG_DATA(head), &who, sizeof who);
		FAILS(sendmsg(pair[0], &message, 0), EPERM);
	}
}

BEHAVIOUR(many_messages_at_once, "sendmmsg recvmmsg")
{
	int pair[2];
	SYS(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	away();
	char texts[5][8], in[5][8] = { 0 };
	struct iovec parts[5];
	struct mmsghdr all[5] = { 0 };
	for (int i = 0; i < 5; i++) {
		sprintf(texts[i], "msg %d", i);
		parts[i] = (struct iovec){ texts[i], 5 };
		all[i].msg_hdr = (struct msghdr){ .msg_iov = &parts[i], .msg_iovlen = 1 };
	}
	SAME(sendmmsg(pair[0], all, 4, 0), 4);
	for (int i = 0; i < 4; i++)
		SAME(all[i].msg_len, 5);
	for (int i = 0; i < 5; i++)
		parts[i] = (struct iovec){ in[i], 8 };
	struct timespec time = { 5, 0 };
	SAME(recvmmsg(pair[1], all, 5, MSG_WAITFORONE, &time), 4);
	for (int i = 0; i < 4; i++)
		CHECK(!strcmp(in[i], texts[i]), "message %d is %s", i, in[i]);
	FAILS(recvmmsg(pair[1], all, 5, MSG_DONTWAIT, 0), EAGAIN);
}

BEHAVIOUR(options_of_a_socket, "getsockopt setsockopt ioctl")
{
	int pair[2];
	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	int size = 50000;
	SYS(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
	away();
	socklen_t length = sizeof size;
	SYS(getsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, &length));
	SAME(size, 100000);
	struct timeval time = { 0, 50000 }, told;
	SYS(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time));
	length = sizeof told;
	SYS(getsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &told, &length));
	CHECK(told.tv_sec == 0 && told.tv_usec >= 50000 && told.tv_usec < 60000, "the time-out is %ld", (long)told.tv_usec);
	double begin = now(CLOCK_MONOTONIC);
	char c;
	FAILS(recv(pair[0], &c, 1, 0), EAGAIN);
	check_elapsed("recv", begin, 0.05);
	int type;
	length = sizeof type;
	SYS(getsockopt(pair[0], SOL_SOCKET, SO_TYPE, &type, &length));
	SAME(type, SOCK_STREAM);
	SAME(send(pair[1], "abcd", 4, 0), 4);
	SYS(ioctl(pair[0], FIONREAD, &type));
	SAME(type, 4);
	FAILS(setsockopt(pair[0], SOL_SOCKET, 9999, &type, sizeof type), ENOPROTOOPT);
	FAILS(setsockopt(0, SOL_SOCKET, SO_SNDBUF, &size, sizeof size), ENOTSOCK);
}
