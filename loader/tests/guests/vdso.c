/*
 * Calls the functions of a vDSO image that the test hands over.
 *
 * out: base and length of this process's own vDSO (two u64), then its bytes
 * in:  length of an image (u64), its bytes, then six u64: offsets of clock_gettime, gettimeofday, time, clock_getres, getcpu,
 *      getrandom in it, 0 for absent
 * out: one line "name value..." per function called; an image of length 0 ends the guest
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) { perror(what); exit(1); }
static void put(const void *p, size_t n) { if (fwrite(p, 1, n, stdout) != n) die("write"); }
static void get(void *p, size_t n) { if (fread(p, 1, n, stdin) != n) die("read"); }

static int64_t ns(const struct timespec *t) { return t->tv_sec * 1000000000LL + t->tv_nsec; }

/* Difference between what fn says and what the kernel says now, in ns; the two calls are microseconds apart. */
static int64_t behind(long (*fn)(clockid_t, struct timespec *), clockid_t id) {
    struct timespec a, b;
    if (fn(id, &a) != 0 || a.tv_nsec < 0 || a.tv_nsec >= 1000000000) return INT64_MAX;
    syscall(SYS_clock_gettime, id, &b);
    return ns(&a) - ns(&b);
}

int main(void) {
    uint64_t base = getauxval(AT_SYSINFO_EHDR), length = 0, from, to;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx", &from, &to) == 2 && from == base) length = to - from;
    /* Calls that may wait are made in the window: `syscall; ret` at its start. */
    unsigned char *window = mmap((void *)0x7e8000000000, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (window == MAP_FAILED) die("the window");
    memcpy(window, "\x0f\x05\xc3", 3);
    put(&base, 8); put(&length, 8); put((void *)base, length); fflush(stdout);

    for (;;) {
        uint64_t size, at[6];
        get(&size, 8);
        if (size == 0) return 0;
        char *image = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (image == MAP_FAILED) die("mmap");
        get(image, size); get(at, sizeof at);
        if (mprotect(image, size, PROT_READ | PROT_EXEC)) die("mprotect");
        long (*cg)(clockid_t, struct timespec *) = (void *)(image + at[0]);
        long (*gtod)(struct timeval *, struct timezone *) = (void *)(image + at[1]);
        time_t (*tm)(time_t *) = (void *)(image + at[2]);
        long (*res)(clockid_t, struct timespec *) = (void *)(image + at[3]);
        long (*cpu)(unsigned *, unsigned *, void *) = (void *)(image + at[4]);
        long (*rnd)(void *, size_t, unsigned, void *, size_t) = (void *)(image + at[5]);
        printf("realtime %ld\n", behind(cg, CLOCK_REALTIME));
        printf("coarse %ld\n", behind(cg, CLOCK_REALTIME_COARSE));
        printf("tai %ld\n", behind(cg, CLOCK_TAI));
        printf("monotonic %ld\n", behind(cg, CLOCK_MONOTONIC));
        printf("cputime %ld\n", behind(cg, CLOCK_PROCESS_CPUTIME_ID));
        printf("badclock %ld\n", cg(9999, &(struct timespec){0}));
        struct timeval tv; struct timezone tz = { 1, 1 }; struct timespec now;
        long r = gtod(&tv, &tz);
        syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
        if (r || tv.tv_usec < 0 || tv.tv_usec >= 1000000) die("gettimeofday");
        printf("gettimeofday %ld\n", tv.tv_sec * 1000000000LL + tv.tv_usec * 1000LL - ns(&now));
        printf("zone %ld\n", gtod(NULL, &tz));
        time_t t1 = 0, t2 = tm(&t1), t3 = tm(NULL);
        syscall(SYS_clock_gettime, CLOCK_REALTIME_COARSE, &now);
        printf("time %ld\n", t1 == t2 && t3 - t2 >= 0 && t3 - t2 <= 1 ? (t2 * 1000000000LL - ns(&now)) : INT64_MAX);
        struct timespec ts = { 7, 7 };
        printf("getres %ld\n", res(CLOCK_MONOTONIC, &ts) == 0 && ts.tv_sec == 0 ? ts.tv_nsec : -1);
        unsigned c = ~0u, n = ~0u, worst = 0;
        for (int i = 0; i < 200; i++) {
            if (cpu(&c, &n, NULL) || n) die("getcpu");
            if (c > worst) worst = c;
            usleep(50);
        }
        printf("getcpu %u\n", worst);
        printf("getcpu_null %ld\n", cpu(NULL, NULL, NULL));
        if (at[5]) {
            unsigned char buf[64] = {0}; int filled = 0;
            printf("random_params %ld\n", rnd(buf, 0, 0, buf, ~0UL));
            printf("random %ld\n", rnd(buf, 64, 0, buf, 144));
            for (int i = 0; i < 64; i++) filled += buf[i] != 0;
            printf("random_filled %d\n", filled > 32);
            printf("random_bad %ld\n", rnd((void *)8, 64, 0, buf, 144));
        }
        printf("end 0\n"); fflush(stdout);
    }
}
