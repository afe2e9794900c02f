/* Terminals: a pty whose ends are both the process's, and as its controlling terminal. */
#include "behaviour.h"
#include <sys/ioctl.h>
#include <termios.h>

static int master, slave;

static void open_pty(void)
{
	master = SYS(posix_openpt(O_RDWR | O_NOCTTY));
	SYS(grantpt(master));
	SYS(unlockpt(master));
	slave = SYS(open(ptsname(master), O_RDWR | O_NOCTTY));
}

BEHAVIOUR(pty_opened_away, "openat ioctl")
{
	away();
	open_pty();
	int number = -1;
	SYS(ioctl(master, TIOCGPTN, &number));
	char name[40];
	sprintf(name, "/dev/pts/%d", number);
	CHECK(!strcmp(name, ptsname(master)), "it is %s", ptsname(master));
	SAME(isatty(slave), 1);
	SAME(write(master, "typed\n", 6), 6);
	char text[20];
	BYTES(text, read(slave, text, 20), "typed\n");
}

BEHAVIOUR(modes_of_a_terminal, "ioctl read write")
{
	open_pty();
	struct termios before, now_;
	SYS(tcgetattr(slave, &before));
	away();
	SYS(tcgetattr(slave, &now_));
	SAME(now_.c_lflag, before.c_lflag);
	SAME(now_.c_cc[VMIN], before.c_cc[VMIN]);
	cfmakeraw(&now_);
	now_.c_cc[VMIN] = 2;
	SYS(tcsetattr(slave, TCSANOW, &now_));
	SYS(tcgetattr(slave, &before));
	SAME(before.c_cc[VMIN], 2);
	SAME(before.c_lflag & (ICANON | ECHO), 0);
	/* Raw: no line is waited for, and nothing is echoed. */
	SAME(write(master, "ab", 2), 2);
	char text[20];
	BYTES(text, read(slave, text, 20), "ab");
	SYS(fcntl(master, F_SETFL, O_NONBLOCK));
	FAILS(read(master, text, 20), EAGAIN);
	SYS(tcsetattr(slave, TCSADRAIN, &before));
	SYS(tcflush(slave, TCIOFLUSH));
	SYS(tcdrain(slave));
}

BEHAVIOUR(window_size, "ioctl")
{
	open_pty();
	struct winsize size = { 33, 77, 5, 6 };
	SYS(ioctl(master, TIOCSWINSZ, &size));
	away();
	memset(&size, 0, sizeof size);
	SYS(ioctl(slave, TIOCGWINSZ, &size));
	SAME(size.ws_row * 1000 + size.ws_col, 33077);
	size.ws_row = 44;
	SYS(ioctl(slave, TIOCSWINSZ, &size));
	SYS(ioctl(master, TIOCGWINSZ, &size));
	SAME(size.ws_row, 44);
}

/* The pty as the controlling terminal of a session of its own. A guest that leads a group already cannot have one. */
static void control(void)
{
	if (setsid() < 0) {
		/* The leader of the group stays as a relay of the verdict; its child is the guest. */
		FAIL("setsid: %s", strerror(errno));
	}
	open_pty();
	SYS(ioctl(slave, TIOCSCTTY, 0));
}

/* A guest is started as the leader of a group: setsid(2) wants another. Its child goes on in its place. */
static void leave_group(void)
{
	if (getpgrp() != getpid())
		return;
	pid_t child = SYS(fork());
	if (child != 0) {
		int status;
		while (waitpid(child, &status, 0) != child)
			;
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	}
	end_with(getppid());
}

BEHAVIOUR(controlling_terminal, "ioctl openat getsid")
{
	leave_group();
	control();
	away();
	int tty = SYS(open("/dev/tty", O_RDWR));
	SAME(tcgetpgrp(tty), getpgrp());
	pid_t sid = 0;
	SYS(ioctl(tty, TIOCGSID, &sid));
	SAME(sid, getsid(0));
	SAME(write(tty, "to it", 5), 5);
	char text[20];
	BYTES(text, read(master, text, 20), "to it");
}

BEHAVIOUR(interrupt_character, "write read")
{
	leave_group();
	control();
	handle(SIGINT, 0);
	handle(SIGQUIT, 0);
	away();
	SAME(write(master, "\x03", 1), 1);
	for (int i = 0; i < 1000 && !handled; i++)
		usleep(1000);
	SAME(handled_signal, SIGINT);
	SAME(handled_info.si_code, SI_KERNEL);
	SAME(write(master, "\x1c", 1), 1);
	for (int i = 0; i < 1000 && handled < 2; i++)
		usleep(1000);
	SAME(handled_signal, SIGQUIT);
}

BEHAVIOUR(window_change_is_signalled, "ioctl")
{
	leave_group();
	control();
	handle(SIGWINCH, 0);
	away();
	struct winsize size = { 50, 100, 0, 0 };
	SYS(ioctl(master, TIOCSWINSZ, &size));
	for (int i = 0; i < 1000 && !handled; i++)
		usleep(1000);
	SAME(handled, 1);
}

BEHAVIOUR(hangup, "close read")
{
	leave_group();
	control();
	handle(SIGHUP, 0);
	away();
	SYS(close(master));
	for (int i = 0; i < 1000 && !handled; i++)
		usleep(1000);
	SAME(handled_signal, SIGHUP);
	char c;
	SAME(read(slave, &c, 1), 0);
	FAILS(write(slave, "x", 1), EIO);
}
