/* What is known of a file: modes, owners, times, attributes. */
#include "behaviour.h"
#include <sys/time.h>
#include <sys/xattr.h>
#include <utime.h>

static struct stat look(const char *name)
{
	struct stat status;
	SYS(lstat(name, &status));
	return status;
}

BEHAVIOUR(modes, "chmod fchmod fchmodat fchmodat2")
{
	own_folder();
	int fd = file_with("f", "x");
	away();
	SYS(syscall(SYS_chmod, "f", 0600));
	SAME(look("f").st_mode & 07777, 0600);
	SYS(fchmod(fd, 0640));
	SAME(look("f").st_mode & 07777, 0640);
	SYS(syscall(SYS_fchmodat, AT_FDCWD, "f", 04755));
	SAME(look("f").st_mode & 07777, 04755);
	if (syscall(452 /* fchmodat2 */, AT_FDCWD, "f", 0444, 0) == 0)
		SAME(look("f").st_mode & 07777, 0444);
	else
		SAME(errno, ENOSYS);
	FAILS(syscall(SYS_chmod, "none", 0600), ENOENT);
}

BEHAVIOUR(owners, "chown fchown lchown fchownat")
{
	own_folder();
	int fd = file_with("f", "x");
	SYS(symlink("f", "l"));
	int root = geteuid() == 0;
	away();
	uid_t other = root ? 1234 : geteuid();
	gid_t group = root ? 4321 : getegid();
	SYS(syscall(SYS_chown, "l", other, -1));
	SAME(look("f").st_uid, other);
	SYS(fchown(fd, -1, group));
	SAME(look("f").st_gid, group);
	SYS(syscall(SYS_lchown, "l", other, group));
	SAME(look("l").st_gid, group);
	SYS(fchownat(fd, "", geteuid(), getegid(), AT_EMPTY_PATH));
	SAME(look("f").st_uid, geteuid());
	FAILS(fchown(99, 0, 0), EBADF);
}

BEHAVIOUR(times_of_files, "utime utimes futimesat utimensat")
{
	own_folder();
	int fd = file_with("f", "x");
	away();
	SYS(syscall(SYS_utime, "f", &(struct utimbuf){ 1000, 2000 }));
	SAME(look("f").st_atime * 10000 + look("f").st_mtime, 10002000);
	struct timeval both[] = { { 3000, 5 }, { 4000, 6 } };
	SYS(syscall(SYS_utimes, "f", both));
	SAME(look("f").st_mtim.tv_nsec, 6000);
	both[1].tv_sec = 4001;
	SYS(syscall(SYS_futimesat, AT_FDCWD, "f", both));
	SAME(look("f").st_mtime, 4001);
	struct timespec fine[] = { { 0, UTIME_OMIT }, { 5000, 123456789 } };
	SYS(futimens(fd, fine));
	SAME(look("f").st_atime, 3000);
	SAME(look("f").st_mtim.tv_nsec, 123456789);
	SYS(utimensat(AT_FDCWD, "f", 0, AT_SYMLINK_NOFOLLOW));
	CHECK(look("f").st_mtime > 1000000000, "now");
	fine[1].tv_nsec = 2000000000;
	FAILS(futimens(fd, fine), EINVAL);
}

BEHAVIOUR(status_by_every_call, "stat lstat fstat newfstatat statx")
{
	own_folder();
	int fd = file_with("f", "twelve bytes");
	SYS(link("f", "g"));
	struct stat before = look("f"), s;
	away();
	SYS(syscall(SYS_stat, "f", &s));
	SAME(memcmp(&s, &before, sizeof s), 0);
	SYS(syscall(SYS_lstat, "g", &s));
	SAME(memcmp(&s, &before, sizeof s), 0);
	SYS(syscall(SYS_fstat, fd, &s));
	SAME(memcmp(&s, &before, sizeof s), 0);
	SYS(syscall(SYS_newfstatat, fd, "", &s, AT_EMPTY_PATH));
	SAME(memcmp(&s, &before, sizeof s), 0);
	struct statx x;
	SYS(statx(AT_FDCWD, "f", 0, STATX_BASIC_STATS, &x));
	SAME(x.stx_ino, before.st_ino);
	SAME(x.stx_size, 12);
	SAME(x.stx_nlink, 2);
	SAME(x.stx_mode, before.st_mode);
	FAILS(statx(AT_FDCWD, "none", 0, STATX_SIZE, &x), ENOENT);
	FAILS(syscall(SYS_stat, "", &s), ENOENT);
}

static int has(const char *list, ssize_t length, const char *name)
{
	for (ssize_t at = 0; at < length; at += strlen(list + at) + 1)
		if (!strcmp(list + at, name))
			return 1;
	return 0;
}

BEHAVIOUR(extended_attributes, "setxattr getxattr listxattr removexattr fsetxattr fgetxattr flistxattr fremovexattr "
			       "lsetxattr lgetxattr llistxattr lremovexattr")
{
	own_folder();
	int fd = file_with("f", "x");
	away();
	char text[300];
	if (setxattr("f", "user.a", "first", 5, 0) != 0) {
		/* A file system without them: the others say the same. */
		int why = errno;
		FAILS(fsetxattr(fd, "user.a", "x", 1, 0), why);
		FAILS(lsetxattr("f", "user.a", "x", 1, 0), why);
	}
	int there = getxattr("f", "user.a", text, sizeof text) >= 0;
	if (there) {
		SAME(fsetxattr(fd, "user.b", "second one", 10, XATTR_CREATE), 0);
		FAILS(fsetxattr(fd, "user.b", "x", 1, XATTR_CREATE), EEXIST);
		SAME(lsetxattr("f", "user.c", "", 0, 0), 0);
		BYTES(text, getxattr("f", "user.a", text, sizeof text), "first");
		SAME(getxattr("f", "user.a", 0, 0), 5);
		FAILS(getxattr("f", "user.a", text, 2), ERANGE);
		BYTES(text, fgetxattr(fd, "user.b", text, sizeof text), "second one");
		SAME(lgetxattr("f", "user.c", text, sizeof text), 0);
	} else {
		fgetxattr(fd, "user.b", text, sizeof text);
		lgetxattr("f", "user.c", text, sizeof text);
	}
	ssize_t n = listxattr("f", text, sizeof text);
	SAME(has(text, n, "user.b"), there);
	n = flistxattr(fd, text, sizeof text);
	SAME(has(text, n, "user.c"), there);
	n = llistxattr("f", text, sizeof text);
	SAME(has(text, n, "user.a"), there);
	SAME(removexattr("f", "user.a"), there - 1);
	SAME(fremovexattr(fd, "user.b"), there - 1);
	SAME(lremovexattr("f", "user.c"), there - 1);
	n = listxattr("f", text, sizeof text);
	SAME(has(text, n, "user.a"), 0);
}

BEHAVIOUR(newest_attributes, "listxattrat removexattrat file_getattr file_setattr")
{
	own_folder();
	close(file_with("f", "x"));
	away();
	char text[100];
	/* Since Linux 6.13 and 6.17: a kernel without them says so. */
	long n = syscall(465 /* listxattrat */, AT_FDCWD, "f", 0, text, sizeof text);
	CHECK(n >= 0 || errno == ENOSYS || errno == EOPNOTSUPP, "listxattrat: %s", strerror(errno));
	SAME(syscall(466 /* removexattrat */, AT_FDCWD, "f", 0, "user.none"), -1);
	CHECK(errno == ENOSYS || errno == ENODATA || errno == EOPNOTSUPP, "removexattrat: %s", strerror(errno));
	uint64_t attributes[4] = { 0 };
	n = syscall(468 /* file_getattr */, AT_FDCWD, "f", attributes, 24, 0);
	CHECK(n == 0 || errno == ENOSYS || errno == EOPNOTSUPP || errno == ENOTTY, "file_getattr: %s", strerror(errno));
	if (n == 0)
		SYS(syscall(469 /* file_setattr */, AT_FDCWD, "f", attributes, 24, 0));
	else
		SAME(syscall(469, AT_FDCWD, "f", attributes, 24, 0), -1);
}
