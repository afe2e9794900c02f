/* How long a command takes: `wall TIMES CMD ARGS…` prints the nanoseconds of each run, and those of the CPUs for it and all
 * its descendants that were waited for. Its output goes nowhere. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static double cpu(void)
{
    struct rusage r;
    getrusage(RUSAGE_CHILDREN, &r);
    return (r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1e9 + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1e3;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "wall: TIMES CMD ARGS...\n");
        return 1;
    }
    for (int i = atoi(argv[1]); i > 0; i--) {
        int status;
        double begin = now(), used = cpu();
        pid_t pid = fork();
        if (pid == 0) {
            int null = open("/dev/null", O_RDWR);
            dup2(null, 0);
            dup2(null, 1);
            execvp(argv[2], argv + 2);
            fprintf(stderr, "wall: %s: %s\n", argv[2], strerror(errno));
            _exit(127);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
            fprintf(stderr, "wall: %s did not succeed\n", argv[2]);
            return 1;
        }
        double wall = now() - begin;
        printf("%.0f %.0f\n", wall, cpu() - used);
        fflush(stdout);
    }
    return 0;
}
