/* Who the process is stays the same, seen by every call that tells it, in every thread. */
#include "guest.h"
#include <sys/resource.h>
#include <sys/utsname.h>

struct who {
	pid_t pid, ppid, tid, sid, group;
	uid_t uid, euid;
	gid_t gid;
	char cwd[150], self[32], name[65], comm[17], exe[150];
	mode_t mask;
	int nice;
	rlim_t files;
};

static struct who look(void)
{
	struct who w;
	memset(&w, 0, sizeof w);
	w.pid = getpid();
	w.ppid = getppid();
	w.tid = gettid();
	w.sid = getsid(0);
	w.group = getpgrp();
	w.uid = getuid();
	w.euid = geteuid();
	w.gid = getgid();
	SYS(getcwd(w.cwd, sizeof w.cwd));
	SYS(readlink("/proc/self", w.self, sizeof w.self - 1));
	SYS(readlink("/proc/self/exe", w.exe, sizeof w.exe - 1));
	struct utsname u;
	SYS(uname(&u));
	strcpy(w.name, u.nodename);
	pthread_getname_np(pthread_self(), w.comm, sizeof w.comm);
	/* Asking sets it, for all threads: only one of them may. */
	if (w.tid == w.pid) {
		w.mask = umask(027);
		umask(w.mask);
	}
	w.nice = getpriority(PRIO_PROCESS, 0);
	struct rlimit limit;
	SYS(getrlimit(RLIMIT_NOFILE, &limit));
	w.files = limit.rlim_cur;
	return w;
}

static void same(const struct who *a, const struct who *b)
{
#define SAME(field) CHECK(a->field == b->field, #field " was %ld, is %ld", (long)a->field, (long)b->field)
	SAME(pid);
	SAME(ppid);
	SAME(tid);
	SAME(sid);
	SAME(group);
	SAME(uid);
	SAME(euid);
	SAME(gid);
	SAME(mask);
	SAME(nice);
	SAME(files);
#define EQUAL(field) CHECK(!strcmp(a->field, b->field), #field " was %s, is %s", a->field, b->field)
	EQUAL(cwd);
	EQUAL(self);
	EQUAL(name);
	EQUAL(comm);
	EQUAL(exe);
}

static volatile int stop;

static void *thread(void *unused)
{
	(void)unused;
	pthread_setname_np(pthread_self(), "second one");
	struct who first = look();
	while (!stop) {
		struct who again = look();
		same(&first, &again);
		CHECK(syscall(SYS_tgkill, getpid(), gettid(), 0) == 0, "tgkill of itself: %s", strerror(errno));
		usleep(2000);
	}
	return (void *)(intptr_t)first.tid;
}

int main(void)
{
	struct who first = look();
	CHECK(first.pid == first.tid && atoi(first.self) == first.pid, "pid %d, tid %d, /proc/self %s", first.pid,
	      first.tid, first.self);
	pthread_t other;
	CHECK(pthread_create(&other, 0, thread, 0) == 0, "pthread_create");
	ready();
	do {
		struct who again = look();
		same(&first, &again);
		CHECK(kill(first.pid, 0) == 0, "kill of itself: %s", strerror(errno));
		usleep(2000);
	} while (!told());
	stop = 1;
	void *tid;
	pthread_join(other, &tid);
	CHECK((pid_t)(intptr_t)tid != first.pid, "both threads are %d", first.pid);
	PASS();
}
