/* What a call costs that is nothing but two messages: 56 bytes there, 8 bytes back, over plain TCP.
 *
 * `pingpong serve ADDRESS PORT CONNECTIONS` serves that many connections, a thread each, and ends with the last;
 * `pingpong call ADDRESS PORT BATCHES COUNT CONNECTIONS` prints the nanoseconds per round trip of each batch, all
 * connections at work at the same time. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CALL = 56, ANSWER = 8, MOST = 256 };

static long batches, count;
static int connections;
static int sockets[MOST];
static pthread_barrier_t barrier;

static void die(const char *what)
{
    fprintf(stderr, "pingpong: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static int whole(int fd, char *buffer, size_t size, int sends)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = sends ? write(fd, buffer + done, size - done) : read(fd, buffer + done, size - done);
        if (n <= 0)
            return 0;
        done += n;
    }
    return 1;
}

static void *serve(void *socket)
{
    char buffer[CALL] = { 0 };
    int fd = *(int *)socket;
    while (whole(fd, buffer, CALL, 0) && whole(fd, buffer, ANSWER, 1))
        ;
    close(fd);
    return NULL;
}

static void batch(int fd)
{
    char buffer[CALL] = { 0 };
    for (long i = 0; i < count; i++)
        if (!whole(fd, buffer, CALL, 1) || !whole(fd, buffer, ANSWER, 0))
            die("round trip");
}

static void *call(void *socket)
{
    for (long i = 0; i < batches; i++) {
        pthread_barrier_wait(&barrier);
        batch(*(int *)socket);
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static int quick(int fd)
{
    int one = 1;
    if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
        die("socket");
    return fd;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    pthread_t thread[MOST];
    int serves = argc == 5 && !strcmp(argv[1], "serve"), one = 1;
    if (!serves && argc != 7)
        die("serve ADDRESS PORT CONNECTIONS, or call ADDRESS PORT BATCHES COUNT CONNECTIONS");
    connections = atoi(argv[argc - 1]);
    address.sin_port = htons(atoi(argv[3]));
    if (connections < 1 || connections > MOST || inet_pton(AF_INET, argv[2], &address.sin_addr) != 1)
        die("arguments");
    if (serves) {
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(listener, (void *)&address, sizeof address) || listen(listener, MOST))
            die("listen");
        puts("ready");
        fflush(stdout);
        for (int i = 0; i < connections; i++) {
            sockets[i] = quick(accept(listener, NULL, NULL));
            if (pthread_create(&thread[i], NULL, serve, &sockets[i]))
                die("pthread_create");
        }
        for (int i = 0; i < connections; i++)
            pthread_join(thread[i], NULL);
        return 0;
    }
    batches = atol(argv[4]);
    count = atol(argv[5]);
    pthread_barrier_init(&barrier, NULL, connections);
    for (int i = 0; i < connections; i++) {
        sockets[i] = quick(socket(AF_INET, SOCK_STREAM, 0));
        if (connect(sockets[i], (void *)&address, sizeof address))
            die("connect");
        if (i > 0 && pthread_create(&thread[i], NULL, call, &sockets[i]))
            die("pthread_create");
    }
    for (long i = 0; i < batches; i++) {
        if (connections > 1)
            pthread_barrier_wait(&barrier);
        double begin = now();
        batch(sockets[0]);
        if (connections > 1)
            pthread_barrier_wait(&barrier);
        printf("%.1f\n", (now() - begin) / count);
    }
    return 0;
}
