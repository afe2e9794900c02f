/* A process to be moved: `memory MIB THREADS` fills MIB with bytes that do not compress, starts THREADS that sleep, says
 * "ready", waits for a line, looks whether all its memory is still what it was, and says "ok". */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void die(const char *what)
{
    fprintf(stderr, "memory: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static uint64_t next(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

static void *sleeper(void *unused)
{
    for (;;)
        pause();
    return unused;
}

int main(int argc, char **argv)
{
    char line[16];
    if (argc != 3)
        die("MIB THREADS");
    size_t words = strtoul(argv[1], NULL, 10) << 17;
    uint64_t *memory = mmap(NULL, words * 8 + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    uint64_t x = 88172645463325252u;
    for (size_t i = 0; i < words; i++)
        memory[i] = next(&x);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (int i = atoi(argv[2]); i > 1; i--) {
        pthread_t thread;
        if (pthread_create(&thread, &small, sleeper, NULL))
            die("pthread_create");
    }
    puts("ready");
    fflush(stdout);
    /* No call is open for long: what stands still is the memory, not the answer of a call. */
    struct pollfd input = { .fd = 0, .events = POLLIN };
    while (poll(&input, 1, 0) == 0)
        usleep(1000);
    if (read(0, line, sizeof line) < 1)
        die("no line to end with");
    x = 88172645463325252u;
    for (size_t i = 0; i < words; i++)
        if (memory[i] != next(&x)) {
            printf("word %zu of %zu is wrong\n", i, words);
            return 1;
        }
    puts("ok");
    return 0;
}
