/* The protocol of all guests: READY, a line on stdin, PASS or FAIL. See README.md. */
#ifndef GUEST_H
#define GUEST_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* stdio would keep lines in a buffer that a fork doubles; this writes at once. */
__attribute__((format(printf, 1, 2))) static inline void say(const char *format, ...)
{
	char line[600];
	va_list args;
	va_start(args, format);
	int length = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	if (length > (int)sizeof line)
		length = sizeof line;
	for (int done = 0; done < length;) {
		ssize_t n = write(1, line + done, length - done);
		if (n <= 0)
			_exit(3);
		done += n;
	}
}

#define FAIL(...)                                                              \
	do {                                                                       \
		char why_[480];                                                        \
		snprintf(why_, sizeof why_, __VA_ARGS__);                              \
		say("FAIL: %s (%s:%d)\n", why_, __FILE__, __LINE__);                   \
		_exit(1);                                                              \
	} while (0)

#define CHECK(condition, ...)                                                  \
	do {                                                                       \
		if (!(condition))                                                      \
			FAIL(__VA_ARGS__);                                                 \
	} while (0)

/* A call that must not fail; gives its value. */
#define SYS(call)                                                              \
	({                                                                         \
		__typeof__(call) value_ = (call);                                      \
		if ((long)value_ == -1)                                                \
			FAIL("%s: %s", #call, strerror(errno));                            \
		value_;                                                                \
	})

/* The most that any checked wait ended late, in seconds; the harness knows how long the process stood still. */
static double latest;

#define PASS()                                                                 \
	do {                                                                       \
		if (latest > 0.05)                                                     \
			say("PASS late=%.3f\n", latest);                                   \
		else                                                                   \
			say("PASS\n");                                                     \
		exit(0);                                                               \
	} while (0)

static inline void ready(void)
{
	say("READY pid=%d\n", (int)getpid());
}

/* Whether the line has come (or stdin was closed); does not wait. */
static inline int told(void)
{
	struct pollfd in = { .fd = 0, .events = POLLIN };
	int n = poll(&in, 1, 0);
	/* Also natively: a handled signal that comes within its hundred nanoseconds ends even a poll that does not wait. */
	CHECK(n >= 0 || errno == EINTR, "poll of stdin: %s", strerror(errno));
	return n > 0;
}

/* Waits for the line, and takes it. */
static inline void wait_line(void)
{
	char c = 0;
	while (c != '\n') {
		ssize_t n = read(0, &c, 1);
		CHECK(n >= 0, "read of stdin: %s", strerror(errno));
		if (n == 0)
			return;
	}
}

static inline double now(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* A child that outlives a failed parent would keep the harness waiting for its end of the pipe. */
static inline void end_with(pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
}

/* Starts a child that waits for the line and then runs `act`. It ends with its parent. */
static inline pid_t on_line(void (*act)(void *), void *argument)
{
	pid_t parent = getpid();
	pid_t child = SYS(fork());
	if (child == 0) {
		end_with(parent);
		wait_line();
		act(argument);
		_exit(0);
	}
	return child;
}

static inline void reap(pid_t child)
{
	int status = 0;
	CHECK(waitpid(child, &status, 0) == child, "waitpid: %s", strerror(errno));
	CHECK(status == 0, "the helper ended with status %#x", status);
}

/* Early, a time-out was not kept. Late, it may have passed while the process stood still for a move: the harness judges. */
static inline void check_took(const char *what, double took, double wanted)
{
	CHECK(took >= wanted - 0.002, "%s ended early: %.3f s instead of %.3f", what, took, wanted);
	CHECK(took <= wanted + 5, "%s ended late: %.3f s instead of %.3f", what, took, wanted);
	if (took - wanted > latest)
		latest = took - wanted;
}

static inline void check_elapsed(const char *what, double begin, double wanted)
{
	check_took(what, now(CLOCK_MONOTONIC) - begin, wanted);
}

static inline uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* Fills a block so that each word says where it is. */
static inline void fill(void *block, size_t bytes, uint64_t seed)
{
	uint64_t *words = block;
	for (size_t i = 0; i < bytes / 8; i++)
		words[i] = mix(seed + i);
}

/* Index of the first wrong word, or -1. */
static inline long verify(const void *block, size_t bytes, uint64_t seed)
{
	const uint64_t *words = block;
	for (size_t i = 0; i < bytes / 8; i++)
		if (words[i] != mix(seed + i))
			return (long)i;
	return -1;
}
#endif
