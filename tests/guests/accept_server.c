/* A server blocked in accept(2), then in recv(2), answers a client that came while it was anywhere. */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
static struct sockaddr_in address = { .sin_family = AF_INET };

static void client(void *unused)
{
	(void)unused;
	int s = SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(connect(s, (struct sockaddr *)&address, sizeof address));
	usleep(100000);
	CHECK(send(s, "ping", 4, 0) == 4, "send");
	char answer[5] = "";
	CHECK(recv(s, answer, 4, MSG_WAITALL) == 4 && !strcmp(answer, "PING"), "the answer was %s", answer);
}

int main(void)
{
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int s = SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(bind(s, (struct sockaddr *)&address, sizeof address));
	SYS(listen(s, 5));
	socklen_t length = sizeof address;
	SYS(getsockname(s, (struct sockaddr *)&address, &length));
	pid_t child = on_line(client, 0);
	ready();
	struct sockaddr_in peer;
	length = sizeof peer;
	int c = SYS(accept(s, (struct sockaddr *)&peer, &length));
	CHECK(length == sizeof peer && peer.sin_family == AF_INET && peer.sin_addr.s_addr == address.sin_addr.s_addr,
	      "accept's address, %u bytes", length);
	char text[5] = "";
	CHECK(recv(c, text, 4, MSG_WAITALL) == 4, "recv: %s", strerror(errno));
	for (int i = 0; i < 4; i++)
		text[i] -= 32;
	CHECK(send(c, text, 4, 0) == 4, "send");
	reap(child);
	PASS();
}
