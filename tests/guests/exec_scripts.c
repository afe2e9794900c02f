/* Executes scripts: by name, through another script, through a shell, and by descriptor. The kernel puts the interpreter's words in front. */
#include "guest.h"
#include <limits.h>

static char folder[] = "/tmp/mosix-script-XXXXXX", me[PATH_MAX], path[PATH_MAX * 2];

static void script(const char *name, const char *first, const char *rest)
{
	char text[PATH_MAX * 4];
	snprintf(path, sizeof path, "%s/%s", folder, name);
	snprintf(text, sizeof text, "#!%s\n%s", first, rest);
	int fd = SYS(open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0700));
	SYS(write(fd, text, strlen(text)));
	SYS(close(fd));
}

int main(int argc, char **argv)
{
	int step = getenv("STEP") ? atoi(getenv("STEP")) : 0;
	char pid[16], line[PATH_MAX * 2], *empty[] = { "unused", "last", 0 };
	snprintf(pid, sizeof pid, "%d", getpid());
	SYS(readlink("/proc/self/exe", me, sizeof me - 1));
	if (step == 0) {
		SYS(mkdtemp(folder));
		ready();
		wait_line();
		setenv("PID", pid, 1);
		setenv("FOLDER", folder, 1);
	} else {
		CHECK(!strcmp(getenv("PID"), pid), "pid was %s, is %s", getenv("PID"), pid);
		strcpy(folder, getenv("FOLDER"));
		CHECK(!strcmp(argv[argc - 1], "last"), "the last argument is %s", argv[argc - 1]);
	}
	char next[16];
	snprintf(next, sizeof next, "%d", step + 1);
	setenv("STEP", next, 1);
	switch (step) {
	case 0:
		snprintf(line, sizeof line, "%s  one argument ", me);
		script("plain", line, "");
		execv(path, empty);
		break;
	case 1:
		CHECK(argc == 4 && !strcmp(argv[1], "one argument") && strstr(argv[2], "/plain"), "%d arguments: %s, %s", argc, argv[1], argv[2]);
		snprintf(line, sizeof line, "%s/plain", folder);
		script("nested", line, "");
		execv(path, empty);
		break;
	case 2:
		CHECK(argc == 5 && strstr(argv[2], "/plain") && strstr(argv[3], "/nested"), "%d arguments: %s, %s", argc, argv[2], argv[3]);
		snprintf(line, sizeof line, "cd / && exec %s \"$0\" $(echo from a shell) \"$@\"\n", me);
		script("shell", "/bin/sh", line);
		execv(path, empty);
		break;
	case 3:
		CHECK(argc == 6 && strstr(argv[1], "/shell") && !strcmp(argv[4], "shell"), "%d arguments: %s, %s", argc, argv[1], argv[2]);
		snprintf(line, sizeof line, "%s by-descriptor", me);
		script("open", line, "");
		int fd = SYS(open(path, O_RDONLY));
		fexecve(fd, empty, environ);
		break;
	case 4:
		CHECK(argc == 4 && !strncmp(argv[2], "/dev/fd/", 8), "%d arguments: %s, %s", argc, argv[1], argv[2]);
		/* A relative path, and a descriptor of a folder. */
		SYS(chdir(folder));
		execv("./plain", empty);
		break;
	case 5:
		CHECK(argc == 4 && !strcmp(argv[2], "./plain"), "%d arguments: %s", argc, argv[2]);
		int at = SYS(open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC));
		SYS(chdir("/"));
		snprintf(line, sizeof line, "%s/me", folder);
		SYS(symlink(me, line));
		syscall(SYS_execveat, at, "me", empty, environ, 0);
		break;
	case 6:
		snprintf(line, sizeof line, "rm -r %s", folder);
		CHECK(system(line) == 0, "rm");
		PASS();
	}
	FAIL("step %d: %s", step, strerror(errno));
}
