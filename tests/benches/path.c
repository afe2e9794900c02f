/* The kernel's part of a forwarded call and nothing else: what no implementation with these processes and threads can be quicker than.
 *
 *   body -notification-> calls -TCP, 56 bytes-> link -futex-> deputy -futex-> completion -TCP, 8 bytes-> answers -notification-> body
 *
 * `path serve ADDRESS PORT` is home for one connection: link, completion, and a deputy process with as many threads as the body.
 * `path call ADDRESS PORT BATCHES COUNT THREADS` is the host, and prints the nanoseconds per getppid of each batch. Like mosix it
 * sends what is at hand in one write, and lets the link's thread take what is over. It has no books, no checks, no encryption. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 256, RING = 1024, TOGETHER = 16, STACK = 1 << 20, IDLE = 0, POSTED = 1 };

struct call {
    uint64_t id;
    uint32_t thread;
    char rest[44];
};

struct slot {
    _Atomic uint32_t state;
    uint64_t id;
    char line[112];
};

static struct home {
    _Atomic uint32_t bell, waiters, looking, tail;
    _Atomic uint32_t ring[RING];
    struct slot slots[MOST];
} *home;

static struct host {
    _Atomic int listener, started;
    pid_t tids[MOST];
} *host;

static int sock;
static uint32_t taken;
static pthread_mutex_t ring = PTHREAD_MUTEX_INITIALIZER, out = PTHREAD_MUTEX_INITIALIZER;
static long batches, count;
static int threads;
static pthread_barrier_t barrier;

static void die(const char *what)
{
    fprintf(stderr, "path: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static void futex(_Atomic uint32_t *word, int operation, uint32_t value)
{
    syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

static void *shared(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    return memory;
}

static int quick(int fd)
{
    int one = 1;
    if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
        die("socket");
    return fd;
}

static void whole(const void *bytes, size_t size)
{
    pthread_mutex_lock(&out);
    for (size_t done = 0; done < size;) {
        ssize_t n = send(sock, (const char *)bytes + done, size - done, MSG_NOSIGNAL);
        if (n <= 0)
            die("send");
        done += n;
    }
    pthread_mutex_unlock(&out);
}

/* ---- home */

static void ring_bell(void)
{
    atomic_fetch_add(&home->bell, 1);
    if (!atomic_load(&home->looking) && atomic_load(&home->waiters))
        futex(&home->bell, FUTEX_WAKE, 64);
}

static void *deputy(void *argument)
{
    struct slot *slot = argument;
    for (;;) {
        uint32_t seen = atomic_load(&slot->state);
        if (seen != POSTED) {
            futex(&slot->state, FUTEX_WAIT, seen);
            continue;
        }
        syscall(SYS_getppid);
        atomic_store(&slot->state, IDLE);
        uint32_t at = atomic_fetch_add(&home->tail, 1);
        atomic_store(&home->ring[at % RING], slot - home->slots + 1);
        ring_bell();
    }
    return NULL;
}

static int take(uint64_t *answers)
{
    int n = 0;
    for (;; n++) {
        uint32_t entry = atomic_exchange(&home->ring[taken % RING], 0);
        if (!entry)
            return n;
        taken++;
        answers[n] = home->slots[entry - 1].id;
    }
}

static void *completion(void *unused)
{
    uint64_t answers[MOST];
    for (uint32_t bell = 0;;) {
        pthread_mutex_lock(&ring);
        int n = take(answers);
        pthread_mutex_unlock(&ring);
        if (n > 0)
            whole(answers, n * sizeof *answers);
        uint32_t now = atomic_load(&home->bell);
        if (now == bell) {
            atomic_fetch_add(&home->waiters, 1);
            futex(&home->bell, FUTEX_WAIT, bell);
            atomic_fetch_sub(&home->waiters, 1);
        }
        bell = now;
    }
    return unused;
}

static int execute(const struct call *call, uint64_t *answers)
{
    struct slot *slot = &home->slots[call->thread % MOST];
    int n = 0;
    slot->id = call->id;
    atomic_store(&slot->state, POSTED);
    atomic_fetch_add(&home->looking, 1);
    futex(&slot->state, FUTEX_WAKE, 1);
    atomic_fetch_sub(&home->looking, 1);
    if (pthread_mutex_trylock(&ring) == 0) {
        n = take(answers);
        pthread_mutex_unlock(&ring);
    } else {
        ring_bell();
    }
    return n;
}

static void serve(const struct sockaddr_in *address)
{
    static struct call calls[2 * MOST];
    uint64_t answers[2 * MOST];
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    uint32_t count_of_threads;
    pthread_t thread;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (const void *)address, sizeof *address) || listen(listener, 1))
        die("listen");
    puts("ready");
    fflush(stdout);
    home = shared(sizeof *home);
    sock = quick(accept(listener, NULL, NULL));
    if (recv(sock, &count_of_threads, sizeof count_of_threads, MSG_WAITALL) != sizeof count_of_threads)
        die("threads");
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (uint32_t i = 1; i < count_of_threads && i < MOST; i++)
            pthread_create(&thread, NULL, deputy, &home->slots[i]);
        deputy(&home->slots[0]);
    }
    pthread_create(&thread, NULL, completion, NULL);
    for (size_t have = 0;;) {
        ssize_t got = recv(sock, (char *)calls + have, sizeof calls - have, 0);
        if (got <= 0)
            break;
        have += got;
        size_t whole_ones = have / sizeof *calls;
        int n = 0;
        for (size_t i = 0; i < whole_ones; i++) {
            n += execute(&calls[i], answers + n);
            if (n >= TOGETHER || (n > 0 && i + 1 == whole_ones)) {
                whole(answers, n * sizeof *answers);
                n = 0;
            }
        }
        have -= whole_ones * sizeof *calls;
        memmove(calls, calls + whole_ones, have);
    }
    kill(pid, SIGKILL);
    _exit(0);
}

/* ---- host */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void *other(void *index)
{
    host->tids[(intptr_t)index] = gettid();
    atomic_fetch_add(&host->started, 1);
    for (long batch = 0; batch < batches; batch++) {
        pthread_barrier_wait(&barrier);
        for (long i = 0; i < count; i++)
            syscall(SYS_getppid);
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static int body(void *unused)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    double *results = calloc(batches, sizeof *results);
    pthread_t thread;
    (void)unused;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    int listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (listener < 0)
        die("seccomp");
    pthread_barrier_init(&barrier, NULL, threads);
    host->tids[0] = gettid();
    for (intptr_t i = 1; i < threads; i++)
        if (pthread_create(&thread, NULL, other, (void *)i))
            die("pthread_create");
    while (atomic_load(&host->started) < threads - 1)
        usleep(100);
    atomic_store(&host->listener, listener);
    for (long batch = 0; batch < batches; batch++) {
        if (threads > 1)
            pthread_barrier_wait(&barrier);
        double begin = now();
        for (long i = 0; i < count; i++)
            syscall(SYS_getppid);
        if (threads > 1)
            pthread_barrier_wait(&barrier);
        results[batch] = (now() - begin) / count;
    }
    for (long batch = 0; batch < batches; batch++)
        printf("%.1f\n", results[batch]);
    fflush(stdout);
    _exit(0);
}

static void *answers(void *unused)
{
    static uint64_t ids[2 * MOST];
    for (size_t have = 0;;) {
        ssize_t got = recv(sock, (char *)ids + have, sizeof ids - have, 0);
        if (got <= 0)
            return unused;
        have += got;
        size_t whole_ones = have / sizeof *ids;
        for (size_t i = 0; i < whole_ones; i++) {
            struct seccomp_notif_resp answer = { .id = ids[i], .val = 1 };
            ioctl(host->listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
        }
        have -= whole_ones * sizeof *ids;
        memmove(ids, ids + whole_ones, have);
    }
}

static int receive(struct call *call)
{
    struct seccomp_notif n;
    memset(&n, 0, sizeof n);
    if (ioctl(host->listener, SECCOMP_IOCTL_NOTIF_RECV, &n))
        return 0;
    *call = (struct call){ .id = n.id };
    while (call->thread + 1 < (uint32_t)threads && host->tids[call->thread] != (pid_t)n.pid)
        call->thread++;
    return 1;
}

static void call(const struct sockaddr_in *address)
{
    static struct call calls[MOST];
    uint32_t number = threads;
    pthread_t thread;
    sock = quick(socket(AF_INET, SOCK_STREAM, 0));
    if (connect(sock, (const void *)address, sizeof *address))
        die("connect");
    whole(&number, sizeof number);
    host = shared(sizeof *host);
    pid_t pid = clone(body, (char *)shared(STACK) + STACK, CLONE_FILES | SIGCHLD, NULL);
    if (pid < 0)
        die("clone");
    while (!atomic_load(&host->listener))
        if (waitpid(pid, NULL, WNOHANG) != 0 || usleep(100))
            die("the body");
    struct pollfd more = { .fd = host->listener, .events = POLLIN };
    /* SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: Linux 6.6; without them it is slower. */
    ioctl(host->listener, SECCOMP_IOW(4, uint64_t), 1);
    pthread_create(&thread, NULL, answers, NULL);
    for (int n = 0; receive(&calls[0]); n = 0) {
        for (n = 1; n < threads && poll(&more, 1, 0) > 0 && more.revents & POLLIN; n++)
            if (!receive(&calls[n]))
                break;
        whole(calls, n * sizeof *calls);
    }
    waitpid(pid, NULL, 0);
    _exit(0);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    int serves = argc == 4 && !strcmp(argv[1], "serve");
    if (!serves && (argc != 7 || strcmp(argv[1], "call")))
        die("serve ADDRESS PORT, or call ADDRESS PORT BATCHES COUNT THREADS");
    address.sin_port = htons(atoi(argv[3]));
    if (inet_pton(AF_INET, argv[2], &address.sin_addr) != 1)
        die("arguments");
    if (serves)
        serve(&address);
    batches = atol(argv[4]);
    count = atol(argv[5]);
    threads = atoi(argv[6]);
    if (batches < 1 || count < 1 || threads < 1 || threads > MOST)
        die("arguments");
    call(&address);
    return 0;
}
