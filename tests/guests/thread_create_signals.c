/* Signals meet threads that are just making threads: none is lost, and each call makes one thread, also when it is interrupted. */
#include "guest.h"
#include <linux/futex.h>
#include <sched.h>

#define STACK 16384
static _Atomic uint64_t handled, ran, made;
static _Atomic int words[8];

static void on_signal(int signal)
{
	(void)signal;
	handled++;
}

static int thread(void *argument)
{
	(void)argument;
	ran++;
	return 0;
}

/* The library blocks signals while it makes a thread; this does not. */
static void make(char *stack, _Atomic int *word)
{
	int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PARENT_SETTID |
		    CLONE_CHILD_CLEARTID;
	pid_t told_parent = 0;
	*word = -1;
	int tid = clone(thread, stack + STACK, flags, 0, &told_parent, 0, word);
	CHECK(tid > 0, "clone: %s", strerror(errno));
	CHECK(told_parent == tid, "the parent was told %d, not %d", (int)told_parent, tid);
	made++;
	int value;
	while ((value = *word) != 0)
		syscall(SYS_futex, word, FUTEX_WAIT_BITSET, value, 0, 0, -1);
}

static void *maker(void *argument)
{
	_Atomic int *word = argument;
	char *stack = mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(stack != MAP_FAILED, "mmap: %s", strerror(errno));
	for (int i = 0; i < 5; i++)
		make(stack, word);
	munmap(stack, STACK);
	return 0;
}

int main(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	SYS(sigaction(SIGUSR1, &action, 0));
	/* The sender counts what it has sent; it goes on only when the last one was handled, because ordinary signals merge. */
	int go[2], sent[2];
	SYS(pipe(go));
	SYS(pipe(sent));
	pid_t parent = getpid(), child = SYS(fork());
	if (child == 0) {
		char c;
		end_with(parent);
		close(go[1]);
		while (read(go[0], &c, 1) == 1) {
			if (kill(parent, SIGUSR1) != 0 || write(sent[1], "s", 1) != 1)
				_exit(1);
		}
		_exit(0);
	}
	close(go[0]);
	ready();
	uint64_t asked = 0;
	do {
		pthread_t makers[3];
		char c;
		for (int i = 0; i < 3; i++)
			CHECK(pthread_create(&makers[i], 0, maker, (void *)&words[i]) == 0, "pthread_create");
		for (int i = 0; i < 3; i++) {
			ssize_t n;
			while ((n = write(go[1], "g", 1)) < 0 && errno == EINTR)
				;
			CHECK(n == 1, "write: %s", strerror(errno));
			asked++;
			while ((n = read(sent[0], &c, 1)) < 0 && errno == EINTR)
				;
			CHECK(n == 1, "read: %s", strerror(errno));
			for (int wait = 0; wait < 20000 && handled < asked; wait++)
				usleep(500);
			CHECK(handled == asked, "%lu of %lu signals were handled", (long)handled, (long)asked);
		}
		for (int i = 0; i < 3; i++)
			CHECK(pthread_join(makers[i], 0) == 0, "pthread_join");
		CHECK(ran == made && made % 15 == 0, "%lu threads ran, %lu were made", (long)ran, (long)made);
	} while (!told());
	close(go[1]);
	reap(child);
	PASS();
}
