/* Names: making, linking, renaming, removing, walking; by path and by folder descriptor, by the old calls and the new ones. */
#include "behaviour.h"
#include <dirent.h>
#include <linux/openat2.h>
#include <sys/statfs.h>

static int exists(const char *name)
{
	struct stat status;
	return lstat(name, &status) == 0;
}

BEHAVIOUR(names_by_the_old_calls, "open creat mkdir rmdir link unlink symlink readlink rename access")
{
	own_folder();
	away();
	char text[50];
	close(SYS(syscall(SYS_creat, "a", 0640)));
	close(SYS(syscall(SYS_open, "a", O_RDONLY)));
	FAILS(syscall(SYS_open, "a", O_CREAT | O_EXCL | O_RDWR, 0600), EEXIST);
	SYS(syscall(SYS_mkdir, "d", 0755));
	SYS(syscall(SYS_link, "a", "d/b"));
	SYS(syscall(SYS_symlink, "../a", "d/s"));
	BYTES(text, syscall(SYS_readlink, "d/s", text, sizeof text), "../a");
	SAME(syscall(SYS_readlink, "d/s", text, 2), 2);
	FAILS(syscall(SYS_readlink, "a", text, 2), EINVAL);
	FAILS(syscall(SYS_rmdir, "d"), ENOTEMPTY);
	SYS(syscall(SYS_rename, "d/b", "c"));
	CHECK(!exists("d/b") && exists("c"), "renamed");
	SYS(syscall(SYS_unlink, "d/s"));
	SYS(syscall(SYS_rmdir, "d"));
	SYS(syscall(SYS_access, "c", F_OK | R_OK));
	FAILS(syscall(SYS_access, "none", F_OK), ENOENT);
	FAILS(syscall(SYS_unlink, "c/d"), ENOTDIR);
}

BEHAVIOUR(names_by_folder, "openat mkdirat unlinkat linkat symlinkat readlinkat renameat renameat2 faccessat faccessat2")
{
	own_folder();
	SYS(mkdir("d", 0755));
	int dir = SYS(open("d", O_PATH | O_DIRECTORY));
	away();
	char text[50];
	close(SYS(openat(dir, "a", O_CREAT | O_WRONLY, 0600)));
	SYS(mkdirat(dir, "e", 0700));
	SYS(linkat(dir, "a", AT_FDCWD, "linked", 0));
	SYS(symlinkat("a", dir, "s"));
	BYTES(text, readlinkat(dir, "s", text, sizeof text), "a");
	SYS(syscall(SYS_renameat, dir, "a", dir, "b"));
	SYS(renameat2(dir, "b", dir, "e", RENAME_EXCHANGE));
	SYS(syscall(SYS_faccessat, dir, "e", R_OK));
	SYS(syscall(SYS_faccessat2, dir, "s", F_OK, AT_SYMLINK_NOFOLLOW));
	FAILS(renameat2(dir, "b", dir, "s", RENAME_NOREPLACE), EEXIST);
	SYS(unlinkat(dir, "b", AT_REMOVEDIR));
	SYS(unlinkat(dir, "e", 0));
	FAILS(unlinkat(dir, "none", 0), ENOENT);
	FAILS(openat(99, "a", O_RDONLY), EBADF);
	CHECK(exists("linked"), "the link is gone");
}

BEHAVIOUR(opened_with_limits, "openat2")
{
	own_folder();
	SYS(mkdir("d", 0755));
	SYS(symlink("/etc", "d/out"));
	int dir = SYS(open("d", O_PATH));
	away();
	struct open_how how = { .flags = O_RDWR | O_CREAT, .mode = 0600, .resolve = RESOLVE_BENEATH };
	close(SYS(syscall(SYS_openat2, dir, "a", &how, sizeof how)));
	how = (struct open_how){ .flags = O_RDONLY, .resolve = RESOLVE_BENEATH };
	FAILS(syscall(SYS_openat2, dir, "../d/a", &how, sizeof how), EXDEV);
	FAILS(syscall(SYS_openat2, dir, "out/passwd", &how, sizeof how), EXDEV);
	how.resolve = RESOLVE_NO_SYMLINKS;
	FAILS(syscall(SYS_openat2, dir, "out/passwd", &how, sizeof how), ELOOP);
	FAILS(syscall(SYS_openat2, dir, "a", &how, 8), EINVAL);
}

BEHAVIOUR(folder_is_read, "getdents64 getdents lseek")
{
	own_folder();
	for (int i = 0; i < 300; i++) {
		char name[20];
		sprintf(name, "file-%d", i);
		close(SYS(open(name, O_CREAT | O_WRONLY, 0600)));
	}
	DIR *dir = opendir(".");
	int seen[300] = { 0 }, dots = 0, n;
	struct dirent *entry = readdir(dir);
	away();
	/* One buffer was read before the move, the others are read now. */
	for (; entry; entry = readdir(dir))
		if (sscanf(entry->d_name, "file-%d", &n) == 1)
			seen[n]++;
		else
			dots++;
	SAME(dots, 2);
	for (int i = 0; i < 300; i++)
		SAME(seen[i], 1);
	rewinddir(dir);
	CHECK(readdir(dir) != 0, "after rewinddir");
	char small[64];
	lseek(dirfd(dir), 0, SEEK_SET);
	CHECK(syscall(SYS_getdents, dirfd(dir), small, sizeof small) > 0, "getdents: %s", strerror(errno));
	FAILS(syscall(SYS_getdents64, dirfd(dir), small, 5), EINVAL);
}

BEHAVIOUR(current_folder, "chdir fchdir getcwd")
{
	own_folder();
	SYS(mkdir("d", 0755));
	int here = SYS(open(".", O_RDONLY)), fd = file_with("f", "x");
	SYS(chdir("d"));
	away();
	char text[200];
	CHECK(getcwd(text, sizeof text) && !strncmp(text, folder, strlen(folder)) && !strcmp(text + strlen(folder), "/d"), "in %s", text);
	SYS(fchdir(here));
	CHECK(getcwd(text, sizeof text) && !strcmp(text, folder), "in %s", text);
	FAILS(syscall(SYS_getcwd, text, 3), ERANGE);
	FAILS(chdir("f"), ENOTDIR);
	FAILS(fchdir(fd), ENOTDIR);
	SYS(chdir("/"));
	SAME(syscall(SYS_getcwd, text, sizeof text), 2);
}

BEHAVIOUR(removed_current_folder, "getcwd rmdir openat")
{
	own_folder();
	SYS(mkdir("d", 0755));
	SYS(chdir("d"));
	away();
	char text[200];
	SYS(rmdir("../d"));
	FAILS(syscall(SYS_getcwd, text, sizeof text), ENOENT);
	FAILS(open("f", O_CREAT | O_WRONLY, 0600), ENOENT);
	SYS(chdir("/"));
}

BEHAVIOUR(another_root, "chroot chdir")
{
	if (geteuid() != 0)
		PASS();
	own_folder();
	folder_owner = 0;
	close(file_with("inside", "x"));
	away();
	SYS(chroot("."));
	SYS(chdir("/"));
	CHECK(exists("/inside") && !exists("/etc/passwd"), "the root is another one");
	SYS(unlink("/inside"));
}

BEHAVIOUR(file_systems, "statfs fstatfs ustat")
{
	own_folder();
	int fd = file_with("f", "x");
	struct statfs before, one, two;
	SYS(statfs("/proc", &before));
	away();
	SYS(statfs("/proc", &one));
	SAME(one.f_type, before.f_type);
	SYS(statfs(".", &one));
	SYS(fstatfs(fd, &two));
	SAME(one.f_type, two.f_type);
	SAME(one.f_blocks, two.f_blocks);
	char old[64];
	FAILS(syscall(SYS_ustat, 0xffffff, old), EINVAL);
}

BEHAVIOUR(special_files, "mknod mknodat umask")
{
	own_folder();
	away();
	struct stat status;
	umask(027);
	SYS(syscall(SYS_mknod, "fifo", S_IFIFO | 0666, 0));
	SYS(syscall(SYS_mknodat, AT_FDCWD, "plain", S_IFREG | 0666, 0));
	SYS(lstat("fifo", &status));
	SAME(status.st_mode, S_IFIFO | 0640);
	SYS(lstat("plain", &status));
	SAME(status.st_mode, S_IFREG | 0640);
	SAME(umask(0), 027);
	SAME(umask(022), 0);
}

BEHAVIOUR(deleted_file_stays, "newfstatat read unlink openat")
{
	own_folder();
	int fd = file_with("f", "still there");
	away();
	SYS(unlink("f"));
	struct stat status;
	SYS(fstat(fd, &status));
	SAME(status.st_nlink, 0);
	char text[30];
	BYTES(text, read(fd, text, 30), "still there");
	char name[40];
	sprintf(name, "/proc/self/fd/%d", fd);
	int again = SYS(open(name, O_RDONLY));
	BYTES(text, read(again, text, 30), "still there");
}
