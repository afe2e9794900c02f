/* Tries to leave its host. Every line is one attempt and its raw result; what goes home is answered by the test. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The parent that home shows only to a body: above every possible pid. */
#define AWAY 0x7fff0001L
#define WINDOW 0x7e8000000000UL
#define SHARED (WINDOW + 0x100000UL)

static long raw(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long ret;
	__asm__ volatile("syscall" : "=a"(ret) : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

static void say(const char *what, long ret)
{
	char line[128];
	int n = snprintf(line, sizeof line, "%s %ld\n", what, ret);
	raw(SYS_write, 1, (long)line, n, 0, 0, 0);
}

/* Finds `syscall` in the stub's text and calls it from there, with an open of a path of the host. */
static long through_stub(long nr, long a, long b, long c)
{
	const unsigned char *text = (const unsigned char *)WINDOW;
	for (unsigned i = 0; i < 0x1000; i++)
		if (text[i] == 0x0f && text[i + 1] == 0x05) {
			/* Whatever follows the instruction there may crash the program: the call was made all the same. */
			long ret;
			__asm__ volatile("call *%1" : "=a"(ret) : "r"(text + i), "0"(nr), "D"(a), "S"(b), "d"(c)
					 : "rcx", "r11", "memory");
			return ret;
		}
	return -1000;
}

static long int80(long nr, long a, long b, long c)
{
	long ret;
	__asm__ volatile("int $0x80" : "=a"(ret) : "0"(nr), "b"(a), "c"(b), "d"(c) : "memory");
	return ret;
}

int main(int argc, char **argv)
{
	char ready = 'R';
	/* Left alone by a test that failed, it ends by itself. */
	alarm(60);
	write(1, &ready, 1);
	/*
	 * Between this byte and the freeze the program still runs natively, as the user who runs the tests. No attempt
	 * begins before home answers with a parent that no kernel gives; and none would do harm: signals are number 0.
	 */
	while (raw(SYS_getppid, 0, 0, 0, 0, 0, 0) != AWAY)
		;
	say("open", raw(SYS_open, (long)"/etc/shadow", O_RDONLY, 0, 0, 0, 0));
	say("openat", raw(SYS_openat, AT_FDCWD, (long)"/proc/1/environ", O_RDONLY, 0, 0, 0));
	say("socket", raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0));
	say("kill", raw(SYS_kill, -1, 0, 0, 0, 0, 0));
	say("tgkill", raw(SYS_tgkill, 1, 1, 0, 0, 0, 0));
	say("memfd", raw(SYS_memfd_create, (long)"x", 0, 0, 0, 0, 0));
	say("x32-getpid", raw(0x40000000 | 39, 0, 0, 0, 0, 0, 0));
	say("x32-open", raw(0x40000000 | 2, (long)"/etc/shadow", O_RDONLY, 0, 0, 0, 0));
	say("int80-getpid", int80(20, 0, 0, 0));
	say("int80-exit-free-number", int80(0, 0, 0, 0));
	say("munmap-window", raw(SYS_munmap, WINDOW, 0x1000, 0, 0, 0, 0));
	say("munmap-across", raw(SYS_munmap, WINDOW - 0x100000, 0x200000, 0, 0, 0, 0));
	say("mprotect-window", raw(SYS_mprotect, WINDOW, 0x1000, 7, 0, 0, 0));
	say("mprotect-shared", raw(SYS_mprotect, SHARED, 0x1000, 7, 0, 0, 0));
	say("mremap-window", raw(SYS_mremap, WINDOW, 0x1000, 0x1000, 1, 0, 0));
	void *mine = mmap(0, 0x1000, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	say("mremap-onto", raw(SYS_mremap, (long)mine, 0x1000, 0x1000, 3, WINDOW, 0));
	say("mmap-onto", raw(SYS_mmap, WINDOW, 0x1000, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	say("madvise-window", raw(SYS_madvise, WINDOW, 0x1000, MADV_DONTNEED, 0, 0, 0));
	say("huge-munmap", raw(SYS_munmap, 0x10000, 0x7ffffffe0000UL, 0, 0, 0, 0));
	say("still-there", *(volatile unsigned char *)WINDOW != 0);
	if (argc > 1 && !strcmp(argv[1], "stub"))
		say("stub-open", through_stub(SYS_open, (long)"/etc/shadow", O_RDONLY, 0));
	if (argc > 1 && !strcmp(argv[1], "unshare"))
		say("unshare", raw(SYS_unshare, 0x10000000, 0, 0, 0, 0, 0));
	if (argc > 1 && !strcmp(argv[1], "clone3")) {
		unsigned long args[11] = { 0x10000000, 0, 0, 0, SIGCHLD };
		say("clone3", raw(SYS_clone3, (long)args, sizeof args, 0, 0, 0, 0));
	}
	if (argc > 1 && !strcmp(argv[1], "ptrace"))
		say("ptrace", raw(SYS_ptrace, PTRACE_SEIZE, 1, 0, 0, 0, 0));
	if (argc > 1 && !strcmp(argv[1], "grow")) {
		/* As much as it is given, in pieces that are used: it must end before the host does. */
		long got = 0;
		for (int i = 0; i < 4096; i++) {
			long at = raw(SYS_mmap, 0, 16 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (at < 0 && at > -4096)
				break;
			memset((void *)at, 1, 16 << 20);
			got += 16;
		}
		say("grown-below-limit", got <= 256);
		say("grown-at-all", got >= 64);
		say("grows-down", raw(SYS_mmap, 0, 1L << 40, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0));
	}
	if (argc > 1 && !strcmp(argv[1], "crash"))
		*(volatile int *)8 = 1;
	say("end", 0);
	return 0;
}
