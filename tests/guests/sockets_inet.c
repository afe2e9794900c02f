/* Sockets of the network: client, server, datagrams, options; the network is home's. */
#include "behaviour.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static struct sockaddr_in local(int port)
{
	return (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

/* A listening socket, and its port. */
static int server_at(int *port)
{
	int fd = SYS(socket(AF_INET, SOCK_STREAM, 0));
	struct sockaddr_in address = local(0);
	socklen_t length = sizeof address;
	SYS(bind(fd, (void *)&address, sizeof address));
	SYS(listen(fd, 5));
	SYS(getsockname(fd, (void *)&address, &length));
	*port = ntohs(address.sin_port);
	return fd;
}

BEHAVIOUR(tcp_made_at_home, "sendto recvfrom getpeername getsockname")
{
	int port;
	int server = server_at(&port), client = SYS(socket(AF_INET, SOCK_STREAM, 0));
	struct sockaddr_in address = local(port), other;
	SYS(connect(client, (void *)&address, sizeof address));
	int got = SYS(accept(server, 0, 0));
	SAME(send(client, "early ", 6, 0), 6);
	away();
	SAME(send(client, "late", 4, 0), 4);
	char text[20];
	BYTES(text, recv(got, text, 10, MSG_WAITALL), "early late");
	socklen_t length = sizeof other;
	SYS(getpeername(client, (void *)&other, &length));
	SAME(ntohs(other.sin_port), port);
	struct sockaddr_in mine;
	SYS(getsockname(client, (void *)&mine, &length));
	SYS(getpeername(got, (void *)&other, &length));
	SAME(mine.sin_port, other.sin_port);
}

BEHAVIOUR(tcp_made_away, "socket bind listen connect accept accept4 shutdown setsockopt getsockopt")
{
	away();
	int port, on = 1, value;
	int server = server_at(&port), client = SYS(socket(AF_INET, SOCK_STREAM, 0));
	struct sockaddr_in address = local(port);
	SYS(setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
	SYS(connect(client, (void *)&address, sizeof address));
	FAILS(connect(client, (void *)&address, sizeof address), EISCONN);
	socklen_t length = sizeof address;
	int got = SYS(accept4(server, (void *)&address, &length, SOCK_NONBLOCK));
	SAME(length, 16);
	SAME(address.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
	FAILS(recv(got, &value, 1, 0), EAGAIN);
	length = sizeof value;
	SYS(getsockopt(client, IPPROTO_TCP, TCP_NODELAY, &value, &length));
	SAME(value, 1);
	struct tcp_info info;
	length = sizeof info;
	SYS(getsockopt(client, IPPROTO_TCP, TCP_INFO, &info, &length));
	SAME(info.tcpi_state, TCP_ESTABLISHED);
	SYS(shutdown(client, SHUT_RDWR));
	char c;
	struct pollfd one = { got, POLLIN, 0 };
	SAME(poll(&one, 1, 5000), 1);
	SAME(recv(got, &c, 1, 0), 0);
	SYS(fcntl(server, F_SETFL, O_NONBLOCK));
	FAILS(accept(server, 0, 0), EAGAIN);
}

BEHAVIOUR(connect_without_waiting, "connect poll getsockopt")
{
	int port;
	int server = server_at(&port);
	away();
	struct sockaddr_in address = local(port);
	int client = SYS(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)), error = -1;
	int n = connect(client, (void *)&address, sizeof address);
	CHECK(n == 0 || errno == EINPROGRESS, "connect: %s", strerror(errno));
	struct pollfd one = { client, POLLOUT, 0 };
	SAME(poll(&one, 1, 5000), 1);
	socklen_t length = sizeof error;
	SYS(getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &length));
	SAME(error, 0);
	close(server);
	int other = SYS(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	n = connect(other, (void *)&address, sizeof address);
	CHECK(n == -1 && (errno == EINPROGRESS || errno == ECONNREFUSED), "connect: %s", strerror(errno));
	if (errno == EINPROGRESS) {
		one = (struct pollfd){ other, POLLOUT, 0 };
		SAME(poll(&one, 1, 5000), 1);
		SYS(getsockopt(other, SOL_SOCKET, SO_ERROR, &error, &length));
		SAME(error, ECONNREFUSED);
	}
}

BEHAVIOUR(connection_refused_and_reset, "connect recvfrom sendto setsockopt")
{
	int port, nobody;
	int server = server_at(&port), gone = server_at(&nobody);
	close(gone);
	away();
	struct sockaddr_in address = local(nobody);
	int client = SYS(socket(AF_INET, SOCK_STREAM, 0));
	FAILS(connect(client, (void *)&address, sizeof address), ECONNREFUSED);
	address = local(port);
	client = SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(connect(client, (void *)&address, sizeof address));
	int got = SYS(accept(server, 0, 0));
	struct linger at_once = { 1, 0 };
	SYS(setsockopt(got, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once));
	close(got);
	char c;
	FAILS(recv(client, &c, 1, 0), ECONNRESET);
	handle(SIGPIPE, 0);
	FAILS(send(client, "x", 1, 0), EPIPE);
	SAME(handled, 1);
}

BEHAVIOUR(urgent_byte, "sendto recvfrom ioctl fcntl")
{
	int port;
	int server = server_at(&port), client = SYS(socket(AF_INET, SOCK_STREAM, 0));
	struct sockaddr_in address = local(port);
	SYS(connect(client, (void *)&address, sizeof address));
	int got = SYS(accept(server, 0, 0));
	handle(SIGURG, 0);
	away();
	SYS(fcntl(got, F_SETOWN, getpid()));
	SAME(send(client, "ab", 2, 0), 2);
	SAME(send(client, "!", 1, MSG_OOB), 1);
	for (int i = 0; i < 1000 && !handled; i++)
		usleep(1000);
	SAME(handled, 1);
	int mark = 5;
	char text[5];
	SYS(ioctl(got, 0x8905 /* SIOCATMARK */, &mark));
	SAME(mark, 0);
	BYTES(text, recv(got, text, 5, 0), "ab");
	SYS(ioctl(got, 0x8905, &mark));
	SAME(mark, 1);
	BYTES(text, recv(got, text, 1, MSG_OOB), "!");
}

BEHAVIOUR(udp, "socket sendto recvfrom connect sendmsg recvmsg")
{
	struct sockaddr_in address = local(0), from;
	socklen_t length = sizeof address;
	int one = SYS(socket(AF_INET, SOCK_DGRAM, 0));
	SYS(bind(one, (void *)&address, sizeof address));
	SYS(getsockname(one, (void *)&address, &length));
	away();
	int two = SYS(socket(AF_INET, SOCK_DGRAM, 0));
	SAME(sendto(two, "datagram", 8, 0, (void *)&address, sizeof address), 8);
	char text[20];
	length = sizeof from;
	BYTES(text, recvfrom(one, text, 20, 0, (void *)&from, &length), "datagram");
	SAME(from.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
	SYS(connect(one, (void *)&from, sizeof from));
	SAME(send(one, "answer", 6, 0), 6);
	struct iovec part = { text, 3 };
	struct sockaddr_in name;
	struct msghdr message = { .msg_name = &name, .msg_namelen = sizeof name, .msg_iov = &part, .msg_iovlen = 1 };
	SAME(recvmsg(two, &message, 0), 3);
	SAME(message.msg_flags & MSG_TRUNC, MSG_TRUNC);
	SAME(name.sin_port, address.sin_port);
	FAILS(recv(two, text, 1, MSG_DONTWAIT), EAGAIN);
	part.iov_len = 2;
	message.msg_name = &address;
	SAME(sendmsg(two, &message, 0), 2);
	SAME(recv(one, text, 20, MSG_TRUNC), 2);
}

BEHAVIOUR(version_six, "socket bind getsockname connect")
{
	away();
	int fd = socket(AF_INET6, SOCK_STREAM, 0);
	if (fd < 0) {
		SAME(errno, EAFNOSUPPORT);
		PASS();
	}
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_addr = in6addr_loopback }, found;
	socklen_t length = sizeof found;
	if (bind(fd, (void *)&address, sizeof address) != 0) {
		SAME(errno, EADDRNOTAVAIL);
		PASS();
	}
	SYS(listen(fd, 1));
	SYS(getsockname(fd, (void *)&found, &length));
	SAME(length, sizeof found);
	SAME(memcmp(&found.sin6_addr, &in6addr_loopback, 16), 0);
	int client = SYS(socket(AF_INET6, SOCK_STREAM, 0));
	SYS(connect(client, (void *)&found, sizeof found));
}

BEHAVIOUR(interfaces_are_home_s, "ioctl socket")
{
	int before = if_nametoindex("lo");
	away();
	int fd = SYS(socket(AF_INET, SOCK_DGRAM, 0));
	struct ifreq request = { .ifr_name = "lo" };
	SYS(ioctl(fd, SIOCGIFINDEX, &request));
	SAME(request.ifr_ifindex, before);
	SYS(ioctl(fd, SIOCGIFFLAGS, &request));
	CHECK(request.ifr_flags & IFF_LOOPBACK, "lo has the flags %x", request.ifr_flags);
	SYS(ioctl(fd, SIOCGIFMTU, &request));
	CHECK(request.ifr_mtu > 0, "lo has no MTU");
	strcpy(request.ifr_name, "none0");
	FAILS(ioctl(fd, SIOCGIFINDEX, &request), ENODEV);
	char text[4000] = "";
	struct ifconf all = { .ifc_len = sizeof text, .ifc_buf = text };
	SYS(ioctl(fd, SIOCGIFCONF, &all));
	CHECK(all.ifc_len >= (int)sizeof request, "no interface has an address");
}

BEHAVIOUR(accept_waits_for_a_client, "accept wait4")
{
	int port, go[2];
	int server = server_at(&port);
	SYS(pipe(go));
	pid_t child = SYS(fork());
	if (child == 0) {
		char c;
		close(go[1]);
		if (read(go[0], &c, 1) != 1)
			_exit(1);
		usleep(50000);
		struct sockaddr_in address = local(port);
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		_exit(connect(fd, (void *)&address, sizeof address) == 0 && send(fd, "hello", 5, 0) == 5 ? 0 : 1);
	}
	away();
	CHECK(write(go[1], "g", 1) == 1, "write");
	int got = SYS(accept(server, 0, 0));
	char text[10];
	BYTES(text, recv(got, text, 10, MSG_WAITALL), "hello");
	reap(child);
}
