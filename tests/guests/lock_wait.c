/* Blocked in fcntl(F_SETLKW) and flock(2) while a child at home holds the locks. */
#include "guest.h"
#include <sys/file.h>

int main(void)
{
	char name[] = "/tmp/mosix-guest-XXXXXX";
	int fd = SYS(mkstemp(name)), ends[2];
	SYS(pipe(ends));
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5 };
	pid_t parent = getpid(), child = SYS(fork());
	if (child == 0) {
		end_with(parent);
		int own = SYS(open(name, O_RDWR));
		SYS(fcntl(own, F_SETLK, &lock));
		SYS(flock(own, LOCK_EX));
		CHECK(write(ends[1], "x", 1) == 1, "write");
		wait_line();
		usleep(50000);
		lock.l_type = F_UNLCK;
		SYS(fcntl(own, F_SETLK, &lock));
		usleep(300000);
		_exit(0);
	}
	char c;
	SYS(read(ends[0], &c, 1));
	struct flock test = lock;
	SYS(fcntl(fd, F_GETLK, &test));
	CHECK(test.l_type == F_WRLCK && test.l_pid == child, "F_GETLK: %d of %d", test.l_type, test.l_pid);
	ready();
	CHECK(fcntl(fd, F_SETLKW, &lock) == 0, "F_SETLKW: %s", strerror(errno));
	CHECK(flock(fd, LOCK_EX) == 0, "flock: %s", strerror(errno));
	SYS(unlink(name));
	reap(child);
	PASS();
}
