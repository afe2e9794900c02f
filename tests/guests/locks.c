/* Locks on files: their owner is the process at home, wherever its body is. */
#include "behaviour.h"
#include <sys/file.h>

static struct flock lock_of(int type, off_t start, off_t length)
{
	return (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length };
}

/* A child that does this when told through `go`, and answers with a byte. */
static int go[2], answer[2];
static pid_t helper(void (*act)(void))
{
	SYS(pipe(go));
	SYS(pipe(answer));
	pid_t parent = getpid(), child = SYS(fork());
	if (child == 0) {
		end_with(parent);
		char c;
		while (read(go[0], &c, 1) == 1)
			act();
		_exit(0);
	}
	return child;
}

static int ask(void)
{
	char c = 0;
	CHECK(write(go[1], "?", 1) == 1 && read(answer[0], &c, 1) == 1, "the helper does not answer");
	return c;
}

static void try_flock(void)
{
	int fd = open("f", O_RDWR);
	char c = flock(fd, LOCK_EX | LOCK_NB) == 0 ? 'y' : errno == EWOULDBLOCK ? 'n' : '?';
	close(fd);
	CHECK(write(answer[1], &c, 1) == 1, "write");
}

BEHAVIOUR(flock_is_kept, "flock dup close")
{
	own_folder();
	/* Made first: a child has its parent's open files, and so their locks. */
	helper(try_flock);
	int fd = file_with("f", "x");
	SYS(flock(fd, LOCK_EX));
	away();
	SAME(ask(), 'n');
	SYS(flock(fd, LOCK_UN));
	SAME(ask(), 'y');
	SYS(flock(fd, LOCK_SH));
	SAME(ask(), 'n');
	int other = SYS(open("f", O_RDONLY));
	SYS(flock(other, LOCK_SH | LOCK_NB));
	FAILS(flock(other, LOCK_EX | LOCK_NB), EWOULDBLOCK);
	/* It goes with the last descriptor of the open file. */
	int twin = SYS(dup(fd));
	SYS(close(other));
	SYS(close(fd));
	SAME(ask(), 'n');
	SYS(close(twin));
	SAME(ask(), 'y');
}

static void try_posix(void)
{
	int fd = open("f", O_RDWR);
	struct flock lock = lock_of(F_WRLCK, 10, 10);
	char c = fcntl(fd, F_GETLK, &lock) != 0 ? '?' : lock.l_type == F_UNLCK ? 'y' : lock.l_pid == getppid() ? 'p' : 'o';
	close(fd);
	CHECK(write(answer[1], &c, 1) == 1, "write");
}

BEHAVIOUR(posix_locks_are_kept, "fcntl close")
{
	own_folder();
	int fd = file_with("f", "x");
	struct flock lock = lock_of(F_WRLCK, 0, 100);
	SYS(fcntl(fd, F_SETLK, &lock));
	helper(try_posix);
	away();
	SAME(ask(), 'p');
	lock = lock_of(F_UNLCK, 5, 20);
	SYS(fcntl(fd, F_SETLK, &lock));
	SAME(ask(), 'y');
	lock = lock_of(F_RDLCK, 12, 1);
	SYS(fcntl(fd, F_SETLKW, &lock));
	SAME(ask(), 'p');
	/* Closing any descriptor of the file drops the process's locks. */
	close(SYS(open("f", O_RDONLY)));
	SAME(ask(), 'y');
}

BEHAVIOUR(open_file_locks, "fcntl")
{
	own_folder();
	int fd = file_with("f", "x");
	struct flock lock = lock_of(F_WRLCK, 0, 10);
	SYS(fcntl(fd, F_OFD_SETLK, &lock));
	away();
	int other = SYS(open("f", O_RDWR));
	lock = lock_of(F_WRLCK, 5, 10);
	FAILS(fcntl(other, F_OFD_SETLK, &lock), EAGAIN);
	lock = lock_of(F_WRLCK, 5, 10);
	SYS(fcntl(other, F_OFD_GETLK, &lock));
	SAME(lock.l_type, F_WRLCK);
	SAME(lock.l_pid, -1);
	lock = lock_of(F_WRLCK, 10, 10);
	SYS(fcntl(other, F_OFD_SETLKW, &lock));
	/* POSIX locks of the same process are in their way, too. */
	lock = lock_of(F_WRLCK, 0, 1);
	FAILS(fcntl(other, F_SETLK, &lock), EAGAIN);
}

static void hold_for_a_while(void)
{
	int fd = open("f", O_RDWR);
	struct flock lock = lock_of(F_WRLCK, 0, 0);
	CHECK(fcntl(fd, F_SETLK, &lock) == 0, "the helper's lock");
	CHECK(write(answer[1], "h", 1) == 1, "write");
	usleep(200000);
	_exit(0);
}

BEHAVIOUR(waiting_for_a_lock, "fcntl wait4")
{
	own_folder();
	int fd = file_with("f", "x");
	pid_t child = helper(hold_for_a_while);
	away();
	SAME(ask(), 'h');
	struct flock lock = lock_of(F_WRLCK, 0, 0);
	FAILS(fcntl(fd, F_SETLK, &lock), EAGAIN);
	SYS(fcntl(fd, F_SETLKW, &lock));
	reap(child);
}

BEHAVIOUR(lease_is_broken, "fcntl")
{
	own_folder();
	int fd = file_with("f", "x");
	handle(SIGIO, 0);
	away();
	if (fcntl(fd, F_SETLEASE, F_WRLCK) != 0) {
		/* Somebody else may look at new files of this folder, and some file systems have none. */
		CHECK(errno == EAGAIN || errno == EINVAL, "F_SETLEASE: %s", strerror(errno));
		PASS();
	}
	SAME(fcntl(fd, F_GETLEASE), F_WRLCK);
	FAILS(open("f", O_RDONLY | O_NONBLOCK), EWOULDBLOCK);
	for (int i = 0; i < 1000 && !handled; i++)
		usleep(1000);
	SAME(handled, 1);
	SYS(fcntl(fd, F_SETLEASE, F_UNLCK));
	close(SYS(open("f", O_RDONLY | O_NONBLOCK)));
}
