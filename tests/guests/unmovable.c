/* Does what a process that does it cannot be moved for: argv[1] is the code of docs/reasons.md, some with a variant behind a colon. Prints the
 * pid of the process concerned, or SKIP when this machine cannot do it, and stays as it is. */
#include "guest.h"
#include <linux/aio_abi.h>
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <asm/ldt.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#define PAGE 4096

static void skip(const char *why)
{
	say("READY pid=0 %s: %s\n", why, strerror(errno));
	for (;;)
		pause();
}

static _Noreturn void stay(pid_t pid)
{
	say("READY pid=%d\n", (int)pid);
	for (;;)
		pause();
}

static void *sleeps(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static int sleeping_child(void *unused)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
	return unused != 0;
}

static pid_t with_child(void)
{
	pid_t child = SYS(fork());
	if (child == 0)
		sleeping_child(0);
	return child;
}

static void *shared(int fd)
{
	return SYS(mmap(0, PAGE, PROT_READ | PROT_WRITE, fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED, fd, 0));
}

static int file_of_a_page(void)
{
	char name[] = "/tmp/mosix-unmovable-XXXXXX";
	int fd = SYS(mkstemp(name));
	SYS(unlink(name));
	SYS(ftruncate(fd, PAGE));
	return fd;
}

static void *ends_later(void *leader)
{
	/* Until the first thread is really gone. */
	pthread_join(*(pthread_t *)leader, 0);
	stay(getpid());
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	static char stack[65536];
	if (!strcmp(what, "zombie")) {
		pid_t child = SYS(fork());
		if (child == 0)
			_exit(0);
		siginfo_t info;
		SYS(waitid(P_PID, child, &info, WEXITED | WNOWAIT));
		stay(child);
	} else if (!strcmp(what, "leader-exited")) {
		static pthread_t leader;
		pthread_t thread;
		leader = pthread_self();
		pthread_create(&thread, 0, ends_later, &leader);
		pthread_exit(0);
	} else if (!strcmp(what, "stopped")) {
		pid_t child = SYS(fork());
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			raise(SIGSTOP);
			sleeping_child(0);
		}
		stay(child);
	} else if (!strcmp(what, "traced")) {
		pid_t child = with_child();
		if (ptrace(PTRACE_SEIZE, child, 0, 0))
			skip("ptrace");
		stay(child);
	} else if (!strncmp(what, "vfork", 5) || !strcmp(what, "shares-memory:vfork")) {
		pid_t parent = getpid();
		int child_meant = what[0] == 's';
		pid_t child = SYS(fork());
		if (child == 0) {
			/* A waiting parent cannot print: its child does. */
			pid_t me = getpid();
			if (vfork() == 0) {
				say("READY pid=%d\n", child_meant ? getpid() : me);
				for (;;)
					pause();
			}
			_exit(0);
		}
		while (getppid() != parent)
			pause();
	} else if (!strcmp(what, "shares-memory")) {
		stay(SYS(clone(sleeping_child, stack + sizeof stack, CLONE_VM | SIGCHLD, 0)));
	} else if (!strncmp(what, "shared-memory", 13)) {
		const char *kind = what[13] ? what + 14 : "anonymous";
		if (!strcmp(kind, "anonymous"))
			shared(-1);
		else if (!strcmp(kind, "memfd")) {
			int fd = SYS(memfd_create("shared", 0));
			SYS(ftruncate(fd, PAGE));
			shared(fd);
		} else if (!strcmp(kind, "posix")) {
			int fd = SYS(shm_open("/mosix-unmovable", O_RDWR | O_CREAT, 0600));
			shm_unlink("/mosix-unmovable");
			SYS(ftruncate(fd, PAGE));
			shared(fd);
		} else if (!strcmp(kind, "sysv")) {
			int id = SYS(shmget(IPC_PRIVATE, PAGE, 0600));
			SYS(shmat(id, 0, 0));
			SYS(shmctl(id, IPC_RMID, 0));
		} else if (!strcmp(kind, "file"))
			shared(file_of_a_page());
		else
			FAIL("%s?", kind);
		stay(with_child());
	} else if (!strcmp(what, "mapped-twice")) {
		int fd = file_of_a_page();
		shared(fd);
		shared(fd);
	} else if (!strcmp(what, "device")) {
		struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_TASK_CLOCK };
		int fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
		if (fd < 0 || mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED)
			skip("perf_event_open");
	} else if (!strcmp(what, "kernel-queue")) {
		aio_context_t queue = 0;
		if (syscall(SYS_io_setup, 8, &queue))
			skip("io_setup");
	} else if (!strcmp(what, "userfaultfd")) {
		if (syscall(SYS_userfaultfd, O_CLOEXEC | 1) < 0)
			skip("userfaultfd");
	} else if (!strcmp(what, "secret-memory")) {
		int fd = syscall(SYS_memfd_secret, 0);
		if (fd < 0)
			skip("memfd_secret");
		SYS(ftruncate(fd, PAGE));
		shared(fd);
	} else if (!strcmp(what, "not-dumpable")) {
		SYS(prctl(PR_SET_DUMPABLE, 0));
	} else if (!strcmp(what, "own-seccomp-filter")) {
		struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
		struct sock_fprog program = { 1, &allow };
		SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		SYS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
	} else if (!strcmp(what, "syscall-dispatch")) {
		static char allow;
		if (prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0, 0, &allow))
			skip("syscall user dispatch");
	} else if (!strcmp(what, "ldt")) {
		struct user_desc entry = { .entry_number = 0, .base_addr = 0, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1 };
		if (syscall(SYS_modify_ldt, 1, &entry, sizeof entry))
			skip("modify_ldt");
	} else if (!strcmp(what, "protection-keys")) {
		int key = pkey_alloc(0, 0);
		if (key < 0)
			skip("pkey_alloc");
		SYS(pkey_mprotect(shared(-1), PAGE, PROT_READ, key));
	} else if (!strcmp(what, "threads")) {
		pthread_attr_t small;
		pthread_attr_init(&small);
		pthread_attr_setstacksize(&small, 16384);
		for (int i = 0; i < 4100; i++) {
			pthread_t thread;
			errno = pthread_create(&thread, &small, sleeps, 0);
			if (errno)
				skip("4100 threads");
		}
	} else if (!strcmp(what, "window")) {
		SYS(mmap((void *)0x7e8000100000, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
	} else
		FAIL("no such obstacle: %s", what);
	stay(getpid());
}
