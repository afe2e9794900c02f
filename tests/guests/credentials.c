/* Who the process is: users, groups, capabilities, sessions. Only root can change most of it; others see that. */
#include "behaviour.h"
#include <grp.h>
#include <linux/capability.h>
#include <sys/fsuid.h>

static int root(void)
{
	return geteuid() == 0;
}

BEHAVIOUR(users_are_told, "getuid geteuid getgid getegid getresuid getresgid getgroups getppid getpgrp getpgid getsid")
{
	uid_t u[] = { getuid(), geteuid() }, r, e, s;
	gid_t g[] = { getgid(), getegid() };
	pid_t p[] = { getppid(), getpgrp(), getsid(0) };
	gid_t groups[100], again[100];
	int count = SYS(getgroups(100, groups));
	away();
	SAME(getuid(), u[0]);
	SAME(geteuid(), u[1]);
	SAME(getgid(), g[0]);
	SAME(getegid(), g[1]);
	SYS(getresuid(&r, &e, &s));
	SAME(e, u[1]);
	SYS(getresgid(&r, &e, &s));
	SAME(e, g[1]);
	SAME(getgroups(0, 0), count);
	SAME(getgroups(100, again), count);
	SAME(memcmp(groups, again, count * sizeof *groups), 0);
	SAME(getppid(), p[0]);
	SAME(syscall(SYS_getpgrp), p[1]);
	SAME(getpgid(0), p[1]);
	SAME(getsid(getpid()), p[2]);
	FAILS(getpgid(0x3fffffff), ESRCH);
}

BEHAVIOUR(real_and_effective_users, "setreuid setregid setresuid setresgid access openat")
{
	own_folder();
	int fd = file_with("secret", "x");
	SYS(fchmod(fd, 0600));
	SYS(chmod(folder, 0755));
	away();
	if (!root()) {
		FAILS(setresuid(0, 0, 0), EPERM);
		FAILS(setresgid(0, 0, 0), EPERM);
		SYS(setreuid(-1, -1));
		SYS(setregid(-1, -1));
		FAILS(access("/root/none", R_OK), EACCES);
		PASS();
	}
	SYS(setresgid(-1, 4321, -1));
	SAME(getegid(), 4321);
	SYS(setresuid(-1, 1234, -1));
	SAME(geteuid(), 1234);
	SAME(getuid(), 0);
	FAILS(open("secret", O_RDONLY), EACCES);
	/* access(2) asks for the real user. */
	SYS(access("secret", R_OK));
	SYS(setreuid(-1, 0));
	SYS(setregid(-1, 0));
	close(SYS(open("secret", O_RDONLY)));
}

BEHAVIOUR(users_for_good, "setuid setgid setgroups")
{
	away();
	if (!root()) {
		FAILS(setuid(0), EPERM);
		FAILS(setgid(0), EPERM);
		FAILS(setgroups(0, 0), EPERM);
		PASS();
	}
	gid_t groups[] = { 7, 8, 9 }, found[5];
	SYS(setgroups(3, groups));
	SAME(getgroups(5, found), 3);
	SAME(found[2], 9);
	SYS(setgid(4321));
	SYS(setuid(1234));
	uid_t r, e, s;
	SYS(getresuid(&r, &e, &s));
	SAME(r * 1000 + s, 1234 * 1001);
	FAILS(setuid(0), EPERM);
	FAILS(setgid(0), EPERM);
}

BEHAVIOUR(users_for_files, "setfsuid setfsgid openat")
{
	own_folder();
	int fd = file_with("secret", "x");
	SYS(fchmod(fd, 0600));
	SYS(chmod(folder, 0755));
	away();
	uid_t user = root() ? 1234 : geteuid();
	gid_t group = root() ? 4321 : getegid();
	SAME(setfsuid(user), geteuid());
	SAME(setfsgid(group), getegid());
	SAME(setfsuid(-1), user);
	SAME(setfsgid(-1), group);
	if (root())
		FAILS(open("secret", O_RDONLY), EACCES);
	setfsuid(geteuid());
	setfsgid(getegid());
	close(SYS(open("secret", O_RDONLY)));
}

static volatile int go, ids[3];

static void *keep_looking(void *at)
{
	while (!go)
		usleep(1000);
	ids[(intptr_t)at] = geteuid();
	return 0;
}

BEHAVIOUR(users_of_all_threads, "setresuid tgkill")
{
	pthread_t threads[3];
	for (intptr_t i = 0; i < 3; i++)
		CHECK(pthread_create(&threads[i], 0, keep_looking, (void *)i) == 0, "pthread_create");
	away();
	/* The library sends each thread a signal, in whose handler it changes its user. */
	uid_t user = root() ? 1234 : geteuid();
	SYS(setresuid(-1, user, -1));
	go = 1;
	for (int i = 0; i < 3; i++) {
		pthread_join(threads[i], 0);
		SAME(ids[i], user);
	}
	SYS(setresuid(-1, getuid(), -1));
}

BEHAVIOUR(capabilities, "capget capset prctl")
{
	away();
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2], again[2];
	SYS(syscall(SYS_capget, &head, data));
	data[0].effective = data[0].inheritable = 0;
	SYS(syscall(SYS_capset, &head, data));
	SYS(syscall(SYS_capget, &head, again));
	SAME(again[0].effective, 0);
	SAME(again[0].permitted, data[0].permitted);
	if (root()) {
		FAILS(chroot("/"), EPERM);
		SAME(prctl(PR_CAPBSET_READ, 5, 0, 0, 0), 1);
	}
	data[0].permitted = ~0u;
	data[1].permitted = ~0u;
	FAILS(syscall(SYS_capset, &head, data), EPERM);
	head.version = 1;
	FAILS(syscall(SYS_capget, &head, data), EINVAL);
	SAME(head.version, _LINUX_CAPABILITY_VERSION_3);
}

BEHAVIOUR(groups_of_processes, "setpgid getpgid getpgrp getsid wait4")
{
	int ends[2];
	SYS(pipe(ends));
	pid_t child = SYS(fork());
	if (child == 0) {
		char c;
		close(ends[1]);
		_exit(read(ends[0], &c, 1));
	}
	away();
	SYS(setpgid(child, 0));
	SAME(getpgid(child), child);
	SAME(getsid(child), getsid(0));
	FAILS(setpgid(child, 0x3fffffff), EPERM);
	FAILS(setpgid(0, -5), EINVAL);
	if (getpgrp() != getpid())
		SYS(setpgid(0, child));
	close(ends[1]);
	reap(child);
}

BEHAVIOUR(new_session, "setsid getsid")
{
	pid_t child = 0;
	if (getpgrp() == getpid()) {
		/* The leader of a group cannot: its child does it. */
		child = SYS(fork());
		if (child != 0) {
			int status;
			while (waitpid(child, &status, 0) != child)
				;
			_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
		}
		end_with(getppid());
	}
	away();
	SAME(setsid(), getpid());
	SAME(getsid(0), getpid());
	SAME(getpgrp(), getpid());
	FAILS(setsid(), EPERM);
}
