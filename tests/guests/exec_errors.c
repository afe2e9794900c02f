/* An execve that fails: the kernel's errno for each thing that can be wrong, and the program goes on as if it had not tried. */
#include "guest.h"
#include <limits.h>

static volatile sig_atomic_t handled;

static void handler(int number)
{
	(void)number;
	handled++;
}

static char folder[] = "/tmp/mosix-exec-XXXXXX", path[PATH_MAX];

/* A file in the folder. */
static const char *file(const char *name, const char *content, mode_t mode)
{
	snprintf(path, sizeof path, "%s/%s", folder, name);
	int fd = SYS(open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600));
	SYS(write(fd, content, strlen(content)));
	SYS(fchmod(fd, mode));
	SYS(close(fd));
	return path;
}

static void fails(const char *what, int wanted, int got)
{
	CHECK(got == -1 && errno == wanted, "%s: %s instead of %s", what, strerror(errno), strerror(wanted));
	int before = handled;
	raise(SIGUSR1);
	CHECK(handled == before + 1, "%s: the handler is gone", what);
	CHECK(fcntl(61, F_GETFD) == FD_CLOEXEC, "%s: a descriptor is gone", what);
}

int main(void)
{
	char *argv[] = { "x", 0 }, *envp[] = { 0 };
	char *bad[] = { "x", (char *)8, 0 };
	char *unmapped = SYS(mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	SYS(munmap(unmapped + 4096, 4096));
	/* A vector whose end is not mapped, and a string. */
	char **open_end = (char **)(unmapped + 4096) - 2;
	open_end[0] = open_end[1] = "x";
	char *unterminated[] = { unmapped + 4000, 0 };
	memset(unmapped, 'x', 4000);
	signal(SIGUSR1, handler);
	SYS(mkdtemp(folder));
	SYS(dup3(SYS(open("/dev/null", O_RDWR)), 61, O_CLOEXEC));
	ready();
	wait_line();

	fails("no file", ENOENT, execve("/nonexistent/program", argv, envp));
	fails("no name", ENOENT, execve("", argv, envp));
	fails("a folder", EACCES, execve("/tmp", argv, envp));
	fails("below a file", ENOTDIR, execve("/dev/null/x", argv, envp));
	fails("no permission", EACCES, execve(file("plain", "x", 0600), argv, envp));
	fails("no format", ENOEXEC, execve(file("noise", "\x01noise noise noise", 0700), argv, envp));
	fails("empty", ENOEXEC, execve(file("empty", "", 0700), argv, envp));
	fails("no interpreter", ENOENT, execve(file("script", "#!/nonexistent/sh\n", 0700), argv, envp));
	char *long_name = malloc(5001);
	memset(long_name, 'a', 5000);
	long_name[5000] = 0;
	fails("a long path", ENAMETOOLONG, execve(long_name, argv, envp));
	snprintf(path, sizeof path, "%s/loop", folder);
	SYS(symlink(path, path));
	fails("a loop", ELOOP, execve(path, argv, envp));
	fails("a bad path", EFAULT, syscall(SYS_execve, 8, argv, envp));
	fails("bad arguments", EFAULT, syscall(SYS_execve, "/bin/true", 8, envp));
	fails("a bad environment", EFAULT, syscall(SYS_execve, "/bin/true", argv, 8));
	fails("a bad argument", EFAULT, execve("/bin/true", bad, envp));
	fails("arguments without an end", EFAULT, execve("/bin/true", open_end, envp));
	memset(unmapped, 'x', 4096);
	fails("an argument without an end", EFAULT, execve("/bin/true", unterminated, envp));

	char *large = malloc(200001);
	memset(large, 'a', 200000);
	large[200000] = 0;
	char *one[] = { "x", large, 0 };
	fails("a long argument", E2BIG, execve("/bin/true", one, envp));
	large[100000] = 0;
	char *many[101];
	for (int i = 0; i < 100; i++)
		many[i] = large;
	many[100] = 0;
	fails("many arguments", E2BIG, execve("/bin/true", many, envp));
	fails("a large environment", E2BIG, execve("/bin/true", argv, many));

	int fd = SYS(open(file("busy", "#!/bin/true\n", 0700), O_WRONLY));
	fails("busy", ETXTBSY, execve(path, argv, envp));
	SYS(close(fd));
	fails("no descriptor", EBADF, syscall(SYS_execveat, 77, "x", argv, envp, 0));
	fails("no such flag", EINVAL, syscall(SYS_execveat, AT_FDCWD, "/bin/true", argv, envp, 0x40000000));
	snprintf(path, sizeof path, "%s/link", folder);
	SYS(symlink("/bin/true", path));
	fails("a link", ELOOP, syscall(SYS_execveat, AT_FDCWD, path, argv, envp, AT_SYMLINK_NOFOLLOW));
	/* The interpreter could not open what is closed by then. */
	fd = SYS(open(file("gone", "#!/bin/sh\n", 0700), O_RDONLY | O_CLOEXEC));
	fails("a script that is closed", ENOENT, syscall(SYS_execveat, fd, "", argv, envp, AT_EMPTY_PATH));

	char command[PATH_MAX];
	snprintf(command, sizeof command, "rm -r %s", folder);
	CHECK(system(command) == 0, "rm");
	PASS();
}
