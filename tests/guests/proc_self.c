/* /proc/self and what hangs on it describe the process as it is: its memory, masks, threads, time, words, wherever it runs. */
#include "guest.h"
#include <dirent.h>
#include <sys/auxv.h>
#define MEMORY (24ul << 20)

extern char **environ;
static char *block;
static int arguments;
static char **words;
static volatile int32_t seen = 0x5eed;
static pid_t other;

static char text[1 << 20];

/* All of a file, as a string; its length. */
static ssize_t slurp_at(int folder, const char *name)
{
	int fd = SYS(openat(folder, name, O_RDONLY | O_CLOEXEC));
	ssize_t length = 0, n;
	while ((n = SYS(read(fd, text + length, sizeof text - 1 - length))) > 0)
		length += n;
	text[length] = 0;
	CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC, "O_CLOEXEC of %s is lost", name);
	SYS(close(fd));
	return length;
}

static ssize_t slurp(const char *name)
{
	return slurp_at(AT_FDCWD, name);
}

/* The number behind a key of status, read with its base. */
static unsigned long field(const char *key, int base)
{
	char line[64];
	snprintf(line, sizeof line, "\n%s:", key);
	char *at = strstr(text, line);
	CHECK(at, "status has no %s", key);
	return strtoul(at + strlen(line), 0, base);
}

static void check_status(const char *name, int folder, pid_t pid)
{
	slurp_at(folder, name);
	CHECK(!strncmp(text, "Name:\t", 6), "%s begins with %.20s", name, text);
	CHECK(field("Pid", 10) == (unsigned)pid, "Pid of %s is %lu, not %d", name, field("Pid", 10), pid);
	CHECK(field("Tgid", 10) == (unsigned)getpid(), "Tgid of %s is %lu", name, field("Tgid", 10));
	CHECK(field("PPid", 10) == (unsigned)getppid(), "PPid of %s is %lu", name, field("PPid", 10));
	CHECK(field("Threads", 10) == 2, "Threads of %s is %lu", name, field("Threads", 10));
	CHECK(field("VmRSS", 10) * 1024 >= MEMORY, "VmRSS of %s is %lu kB", name, field("VmRSS", 10));
	CHECK(field("VmSize", 10) * 1024 >= MEMORY, "VmSize of %s is %lu kB", name, field("VmSize", 10));
	CHECK(field("SigBlk", 16) == 1ul << (SIGUSR1 - 1), "SigBlk of %s is %#lx", name, field("SigBlk", 16));
	CHECK(field("SigIgn", 16) & 1ul << (SIGUSR2 - 1), "SigIgn of %s is %#lx", name, field("SigIgn", 16));
	CHECK(field("SigCgt", 16) & 1ul << (SIGHUP - 1), "SigCgt of %s is %#lx", name, field("SigCgt", 16));
}

static void check_maps(const char *name)
{
	slurp(name);
	unsigned long start, end, found = 0;
	for (char *line = text; *line; line = strchr(line, '\n') + 1) {
		CHECK(sscanf(line, "%lx-%lx", &start, &end) == 2, "%s has the line %.60s", name, line);
		if (start <= (unsigned long)block && end >= (unsigned long)block + MEMORY)
			found = 1;
	}
	CHECK(found, "%s does not show the memory at %p", name, block);
	CHECK(strstr(text, "[stack]") && strstr(text, "libc.so.6"), "%s shows no stack or no library", name);
	/* The program's own text, with the file's name and number. */
	char exe[512] = "", line[600];
	SYS(readlink("/proc/self/exe", exe, sizeof exe - 1));
	struct stat st;
	SYS(stat(exe, &st));
	snprintf(line, sizeof line, " %lu ", (unsigned long)st.st_ino);
	char *path = strstr(text, exe), *inode = path;
	CHECK(path, "%s does not name %.200s", name, exe);
	while (inode > text && inode[-1] != '\n')
		inode--;
	CHECK(strstr(inode, line) && strstr(inode, line) < path, "%s has another inode for %.200s", name, exe);
}

static void check_numbers(void)
{
	unsigned long size, resident;
	slurp("/proc/self/statm");
	CHECK(sscanf(text, "%lu %lu", &size, &resident) == 2, "statm is %.60s", text);
	CHECK(resident * 4096 >= MEMORY && size >= resident, "statm is %.60s", text);
	slurp("/proc/self/stat");
	int pid, parent, threads;
	char state;
	unsigned long user, system, rss;
	char *rest = strrchr(text, ')');
	CHECK(sscanf(text, "%d (", &pid) == 1 && pid == getpid(), "stat begins with %.20s", text);
	int n = sscanf(rest, ") %c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %*d %*d %*d %*d %d %*d %*u %*u %lu", &state, &parent, &user,
		       &system, &threads, &rss);
	CHECK(n == 6, "stat is %.200s", text);
	CHECK(state == 'R' && parent == getppid() && threads == 2, "stat: state %c, parent %d, threads %d", state, parent, threads);
	CHECK(rss * 4096 >= MEMORY, "stat: %lu pages", rss);
}

/* Words that `ps` shows. */
static void check_words(void)
{
	ssize_t length = slurp("/proc/self/cmdline");
	char *at = text;
	for (int i = 0; i < arguments; i++) {
		CHECK(!strcmp(at, words[i]), "argument %d is %.100s, not %.100s", i, at, words[i]);
		at += strlen(at) + 1;
	}
	CHECK(at == text + length, "cmdline has %zd bytes", length);
	slurp("/proc/self/environ");
	CHECK(environ[0] && !strcmp(text, environ[0]), "environ begins with %.100s, not %.100s", text, environ[0]);
	length = slurp("/proc/self/auxv");
	unsigned long *pair = (unsigned long *)text, entry = 0;
	for (; (char *)pair < text + length && pair[0]; pair += 2)
		if (pair[0] == AT_ENTRY)
			entry = pair[1];
	CHECK(entry == getauxval(AT_ENTRY), "auxv has entry %#lx, not %#lx", entry, getauxval(AT_ENTRY));
	slurp("/proc/self/limits");
	CHECK(strstr(text, "Max open files"), "limits is %.60s", text);
}

static int count(const char *folder)
{
	DIR *entries = opendir(folder);
	CHECK(entries, "%s: %m", folder);
	int found = 0;
	for (struct dirent *entry; (entry = readdir(entries));)
		found += entry->d_name[0] != '.';
	closedir(entries);
	return found;
}

static void check(void)
{
	char name[64];
	check_status("/proc/self/status", AT_FDCWD, getpid());
	snprintf(name, sizeof name, "/proc/%d/status", getpid());
	check_status(name, AT_FDCWD, getpid());
	/* By a folder, and of another thread. */
	int folder = SYS(open("/proc/self", O_RDONLY | O_DIRECTORY));
	check_status("status", folder, getpid());
	snprintf(name, sizeof name, "task/%d/status", other);
	check_status(name, folder, other);
	SYS(close(folder));
	check_maps("/proc/self/maps");
	check_numbers();
	check_words();
	CHECK(count("/proc/self/task") == 2, "/proc/self/task has %d entries", count("/proc/self/task"));
	CHECK(count("/proc/self/fd") >= 4, "/proc/self/fd has %d entries", count("/proc/self/fd"));
}

static void *sleeps(void *unused)
{
	other = gettid();
	for (;;)
		pause();
	return unused;
}

static void handler(int signal)
{
	(void)signal;
}

int main(int argc, char **argv)
{
	arguments = argc;
	words = argv;
	signal(SIGUSR2, SIG_IGN);
	signal(SIGHUP, handler);
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &blocked, 0);
	pthread_t thread;
	pthread_create(&thread, 0, sleeps, 0);
	block = SYS(mmap(0, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	memset(block, 1, MEMORY);
	while (!other)
		usleep(1000);
	check();
	ready();
	wait_line();
	check();
	/* Made where the process is now. */
	SYS(munmap(block, MEMORY));
	block = SYS(mmap(0, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	memset(block, 2, MEMORY);
	check();
	/* Its memory as a file is its memory. */
	int fd = SYS(open("/proc/self/mem", O_RDONLY)), value = 0;
	SYS(pread(fd, &value, sizeof value, (off_t)(uintptr_t)&seen));
	CHECK(value == seen, "/proc/self/mem has %#x", value);
	check_status("/proc/self/status", AT_FDCWD, getpid());
	check_maps("/proc/self/maps");
	PASS();
}
