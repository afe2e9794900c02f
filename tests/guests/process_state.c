/* What else the kernel keeps of a process: limits, priorities, processors, names. */
#include "behaviour.h"
#include <linux/landlock.h>
#include <sched.h>
#include <sys/klog.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/times.h>
#include <sys/utsname.h>

BEHAVIOUR(limits, "prlimit64 getrlimit setrlimit")
{
	struct rlimit before, limit;
	SYS(getrlimit(RLIMIT_CORE, &before));
	away();
	SYS(syscall(SYS_getrlimit, RLIMIT_CORE, &limit));
	SAME(limit.rlim_cur, before.rlim_cur);
	limit = (struct rlimit){ 4096, before.rlim_max < 8192 ? before.rlim_max : 8192 };
	if (limit.rlim_cur > limit.rlim_max)
		limit.rlim_cur = limit.rlim_max;
	SYS(syscall(SYS_setrlimit, RLIMIT_CORE, &limit));
	SYS(prlimit(0, RLIMIT_CORE, 0, &before));
	SAME(before.rlim_cur, limit.rlim_cur);
	SAME(before.rlim_max, limit.rlim_max);
	SYS(prlimit(getpid(), RLIMIT_NOFILE, 0, &before));
	CHECK(before.rlim_cur > 3, "RLIMIT_NOFILE is %ld", (long)before.rlim_cur);
	limit.rlim_cur = limit.rlim_max + 1;
	FAILS(setrlimit(RLIMIT_CORE, &limit), EINVAL);
	FAILS(getrlimit(99, &limit), EINVAL);
}

BEHAVIOUR(priorities, "getpriority setpriority ioprio_get ioprio_set")
{
	int before = getpriority(PRIO_PROCESS, 0);
	away();
	SAME(getpriority(PRIO_PROCESS, 0), before);
	if (before < 19) {
		SYS(setpriority(PRIO_PROCESS, 0, before + 1));
		SAME(getpriority(PRIO_PROCESS, 0), before + 1);
	}
	int level = 2 << 13 | 5;
	SYS(syscall(SYS_ioprio_set, 1, 0, level));
	SAME(syscall(SYS_ioprio_get, 1, 0), level);
	FAILS(getpriority(9, 0), EINVAL);
	FAILS(syscall(SYS_ioprio_set, 1, 0, 7 << 13), EINVAL);
}

BEHAVIOUR(schedulers, "sched_getscheduler sched_setscheduler sched_getparam sched_setparam sched_rr_get_interval sched_getattr")
{
	away();
	struct sched_param none = { 0 };
	SAME(sched_getscheduler(0), SCHED_OTHER);
	SYS(sched_setscheduler(0, SCHED_BATCH, &none));
	SAME(sched_getscheduler(0), SCHED_BATCH);
	SYS(sched_getparam(0, &none));
	SAME(none.sched_priority, 0);
	SYS(sched_setparam(0, &none));
	struct timespec slice;
	SYS(sched_rr_get_interval(0, &slice));
	struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t rest[3]; } attributes;
	SYS(syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0));
	SAME(attributes.policy, SCHED_BATCH);
	none.sched_priority = 5;
	FAILS(sched_setparam(0, &none), EINVAL);
	FAILS(sched_getscheduler(-1), EINVAL);
}

BEHAVIOUR(processors, "sched_getaffinity sched_setaffinity")
{
	cpu_set_t before, set;
	SYS(sched_getaffinity(0, sizeof before, &before));
	away();
	SYS(sched_getaffinity(0, sizeof set, &set));
	SAME(memcmp(&before, &set, sizeof set), 0);
	int first = 0;
	while (!CPU_ISSET(first, &before))
		first++;
	CPU_ZERO(&set);
	CPU_SET(first, &set);
	SYS(sched_setaffinity(0, sizeof set, &set));
	SYS(sched_getaffinity(0, sizeof set, &set));
	SAME(CPU_COUNT(&set), 1);
	SYS(sched_setaffinity(0, sizeof before, &before));
	FAILS(syscall(SYS_sched_getaffinity, 0, 1, &set), EINVAL);
}

BEHAVIOUR(names_of_the_machine, "uname sysinfo")
{
	struct utsname before, name;
	SYS(uname(&before));
	away();
	SYS(uname(&name));
	SAME(memcmp(&before, &name, sizeof name), 0);
	struct sysinfo info;
	SYS(sysinfo(&info));
	CHECK(info.totalram > 0 && info.procs > 0 && info.uptime > 0, "sysinfo is empty");
}

BEHAVIOUR(properties, "prctl")
{
	SYS(prctl(PR_SET_NAME, "named before"));
	away();
	char name[16];
	SYS(prctl(PR_GET_NAME, name));
	CHECK(!strcmp(name, "named before"), "the name is %s", name);
	SYS(prctl(PR_SET_NAME, "a name that is too long"));
	SYS(prctl(PR_GET_NAME, name));
	CHECK(!strcmp(name, "a name that is "), "the name is %s", name);
	int value = 0;
	SYS(prctl(PR_SET_PDEATHSIG, SIGUSR2));
	SYS(prctl(PR_GET_PDEATHSIG, &value));
	SAME(value, SIGUSR2);
	SYS(prctl(PR_SET_CHILD_SUBREAPER, 1));
	SYS(prctl(PR_GET_CHILD_SUBREAPER, &value));
	SAME(value, 1);
	SYS(prctl(PR_SET_TIMERSLACK, 123456));
	SAME(prctl(PR_GET_TIMERSLACK), 123456);
	SYS(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
	SAME(prctl(PR_GET_KEEPCAPS), 1);
	SAME(prctl(PR_GET_DUMPABLE), 1);
	FAILS(prctl(9999), EINVAL);
	SYS(prctl(PR_SET_PDEATHSIG, 0));
}

BEHAVIOUR(kind_of_execution, "personality")
{
	int before = SYS(personality(0xffffffff));
	away();
	SAME(personality(0xffffffff), before);
}

BEHAVIOUR(usage_is_told, "getrusage times")
{
	pid_t child = SYS(fork());
	if (child == 0)
		_exit(0);
	reap(child);
	away();
	struct rusage usage;
	SYS(getrusage(RUSAGE_SELF, &usage));
	CHECK(usage.ru_maxrss > 0, "ru_maxrss is %ld", usage.ru_maxrss);
	SYS(getrusage(RUSAGE_CHILDREN, &usage));
	CHECK(usage.ru_minflt > 0, "the child had %ld faults", usage.ru_minflt);
	struct tms t;
	CHECK(times(&t) != (clock_t)-1, "times: %s", strerror(errno));
	FAILS(getrusage(5, &usage), EINVAL);
}

BEHAVIOUR(kernel_log_has_a_size, "syslog")
{
	away();
	int size = klogctl(10 /* SIZE_BUFFER */, 0, 0);
	CHECK(size > 0 || errno == EPERM, "klogctl: %s", strerror(errno));
}

BEHAVIOUR(sandbox_of_paths, "landlock_create_ruleset landlock_add_rule landlock_restrict_self openat")
{
	own_folder();
	folder_owner = 0;
	close(file_with("f", "x"));
	SYS(mkdir("in", 0755));
	away();
	struct landlock_ruleset_attr rules = { .handled_access_fs = LANDLOCK_ACCESS_FS_READ_FILE };
	int set = syscall(SYS_landlock_create_ruleset, &rules, 8, 0);
	if (set < 0) {
		CHECK(errno == ENOSYS || errno == EOPNOTSUPP, "landlock: %s", strerror(errno));
		/* A kernel without it refuses the others, too. */
		SAME(syscall(SYS_landlock_add_rule, -1, 1, 0, 0), -1);
		SAME(syscall(SYS_landlock_restrict_self, -1, 0), -1);
		PASS();
	}
	close(file_with("in/g", "y"));
	int in = SYS(open("in", O_PATH));
	struct landlock_path_beneath_attr beneath = { .allowed_access = LANDLOCK_ACCESS_FS_READ_FILE, .parent_fd = in };
	SYS(syscall(SYS_landlock_add_rule, set, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0));
	SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	SYS(syscall(SYS_landlock_restrict_self, set, 0));
	FAILS(open("f", O_RDONLY), EACCES);
	close(SYS(open("in/g", O_RDONLY)));
	/* Removing needs no reading of files. */
	folder_owner = getpid();
}

BEHAVIOUR(own_pidfd, "pidfd_open waitid poll")
{
	pid_t child = SYS(fork());
	if (child == 0) {
		for (;;)
			pause();
	}
	away();
	int fd = SYS(syscall(SYS_pidfd_open, child, 0));
	struct pollfd one = { fd, POLLIN, 0 };
	SAME(poll(&one, 1, 0), 0);
	SYS(kill(child, SIGKILL));
	SAME(poll(&one, 1, 5000), 1);
	siginfo_t info;
	SYS(waitid(P_PIDFD, fd, &info, WEXITED));
	SAME(info.si_pid, child);
	SAME(info.si_code, CLD_KILLED);
	FAILS(syscall(SYS_pidfd_open, child, 0), ESRCH);
}
