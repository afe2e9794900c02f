/* One kind of system call or computation in a loop: `calls KIND BATCHES COUNT [THREADS]`.
 *
 * Says "ready", waits for a line (so that it can be moved before it starts), and then prints the nanoseconds per turn of
 * each batch. Batches are short: few of them meet a preemption, and the middle one does not. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int file;
static volatile uint64_t sink;

static void die(const char *what)
{
    fprintf(stderr, "calls: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static void turn_cpu(void)
{
    uint64_t x = sink | 1;
    for (int i = 0; i < 1000; i++)
        x = x * 6364136223846793005u + 1442695040888963407u;
    sink = x;
}

static void turn_clock(void)
{
    struct timespec t;
    if (clock_gettime(CLOCK_MONOTONIC, &t))
        die("clock_gettime");
    sink = t.tv_nsec;
}

static void turn_getppid(void)
{
    sink = syscall(SYS_getppid);
}

static void turn_pread(void)
{
    char byte;
    if (pread(file, &byte, 1, 0) != 1)
        die("pread");
}

static void turn_open(void)
{
    int fd = open("/etc/passwd", O_RDONLY);
    if (fd < 0)
        die("open");
    close(fd);
}

static void turn_fork(void)
{
    pid_t pid = fork();
    int status;
    if (pid < 0)
        die("fork");
    if (pid == 0)
        _exit(0);
    if (waitpid(pid, &status, 0) != pid)
        die("waitpid");
}

static const struct kind {
    const char *name;
    void (*turn)(void);
} kinds[] = {
    { "cpu", turn_cpu }, { "clock", turn_clock }, { "getppid", turn_getppid },
    { "pread", turn_pread }, { "open", turn_open }, { "fork", turn_fork },
};

static void (*turn)(void);
static long batches, count;
static int threads;
static pthread_barrier_t barrier;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void *other(void *unused)
{
    for (long batch = 0; batch < batches; batch++) {
        pthread_barrier_wait(&barrier);
        for (long i = 0; i < count; i++)
            turn();
        pthread_barrier_wait(&barrier);
    }
    return unused;
}

int main(int argc, char **argv)
{
    char line[16];
    if (argc < 4)
        die("KIND BATCHES COUNT [THREADS]");
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (!strcmp(kinds[i].name, argv[1]))
            turn = kinds[i].turn;
    batches = atol(argv[2]);
    count = atol(argv[3]);
    threads = argc > 4 ? atoi(argv[4]) : 1;
    if (!turn || batches < 1 || count < 1 || threads < 1)
        die("arguments");
    file = open("/etc/passwd", O_RDONLY);
    double *results = calloc(batches, sizeof *results);
    if (file < 0 || !results)
        die("set up");
    pthread_barrier_init(&barrier, NULL, threads);
    for (int i = 1; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, other, NULL))
            die("pthread_create");
    }
    puts("ready");
    fflush(stdout);
    if (read(0, line, sizeof line) < 1)
        die("no line to start with");
    for (long batch = 0; batch < batches; batch++) {
        if (threads > 1)
            pthread_barrier_wait(&barrier);
        double begin = now();
        for (long i = 0; i < count; i++)
            turn();
        if (threads > 1)
            pthread_barrier_wait(&barrier);
        results[batch] = (now() - begin) / count;
    }
    for (long batch = 0; batch < batches; batch++)
        printf("%.1f\n", results[batch]);
    return 0;
}
