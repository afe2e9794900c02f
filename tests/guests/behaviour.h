/* Programs of several behaviours, of which argv[1] names the one to show. See README.md. */
#ifndef BEHAVIOUR_H
#define BEHAVIOUR_H
#include "guest.h"
#include <ftw.h>

struct behaviour {
	const char *name;
	void (*show)(void);
};

/* A behaviour, and the calls that it makes away: the harness holds it to them. */
#define BEHAVIOUR(name_, calls_)                                                                              \
	static void name_(void);                                                                              \
	static const struct behaviour name_##_entry __attribute__((section("behaviours"), used)) = { #name_, name_ }; \
	static void name_(void)

extern const struct behaviour __start_behaviours[], __stop_behaviours[];

/* Between set-up and check. */
static inline void away(void)
{
	ready();
	wait_line();
}

int main(int argc, char **argv)
{
	for (const struct behaviour *one = __start_behaviours; one < __stop_behaviours; one++)
		if (argc > 1 && !strcmp(one->name, argv[1])) {
			one->show();
			PASS();
		}
	FAIL("no behaviour %s", argc > 1 ? argv[1] : "was named");
}

/* A handler that counts, and keeps what it was told last. */
static volatile sig_atomic_t handled, handled_signal;
static siginfo_t handled_info;

static inline void on_signal(int signal, siginfo_t *info, void *context)
{
	(void)context;
	handled_signal = signal;
	handled_info = *info;
	handled++;
}

static inline void handle(int signal, int flags)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = flags | SA_SIGINFO };
	SYS(sigaction(signal, &action, 0));
}

static inline void block(int how, int signal)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signal);
	CHECK(pthread_sigmask(how, &set, 0) == 0, "pthread_sigmask");
}

static inline sigset_t set_of(int signal)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signal);
	return set;
}

/* A call that must fail, and why. */
#define FAILS(call, error)                                                                                      \
	do {                                                                                                    \
		errno = 0;                                                                                      \
		long failed_ = (long)(call);                                                                    \
		CHECK(failed_ == -1 && errno == (error), "%s gave %ld: %s", #call, failed_, strerror(errno));   \
	} while (0)

/* Two values that must be the same. */
#define SAME(is, wanted)                                                                                        \
	do {                                                                                                    \
		long is_ = (long)(is), wanted_ = (long)(wanted);                                                \
		CHECK(is_ == wanted_, "%s is %ld (%#lx), not %ld; errno %s", #is, is_, is_, wanted_, strerror(errno)); \
	} while (0)

/* The bytes that were read. */
#define BYTES(is, length, wanted)                                                                               \
	CHECK((length) == (ssize_t)strlen(wanted) && !memcmp(is, wanted, strlen(wanted)), "%s is \"%.*s\" (%ld)", #is,   \
	      (length) > 0 ? (int)(length) : 0, (const char *)(is), (long)(length))

static char folder[40];
static pid_t folder_owner;

static inline int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place)
{
	(void)status, (void)kind, (void)place;
	return remove(path);
}

static inline void remove_folder(void)
{
	if (getpid() == folder_owner)
		nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* A folder of its own, the current one from here on; it goes when the guest has passed. */
static inline void own_folder(void)
{
	strcpy(folder, "/tmp/mosix-guest-XXXXXX");
	CHECK(mkdtemp(folder) != 0, "mkdtemp: %s", strerror(errno));
	SYS(chdir(folder));
	folder_owner = getpid();
	atexit(remove_folder);
}

/* A file with this content, open for reading and writing, at its begin. */
static inline int file_with(const char *name, const char *text)
{
	int fd = SYS(open(name, O_RDWR | O_CREAT | O_TRUNC, 0644));
	CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "write: %s", strerror(errno));
	SYS(lseek(fd, 0, SEEK_SET));
	return fd;
}

/* All of a file, which must be this. */
static inline void holds(const char *name, const char *wanted)
{
	char text[1000];
	int fd = SYS(open(name, O_RDONLY));
	ssize_t n = read(fd, text, sizeof text);
	BYTES(text, n, wanted);
	close(fd);
}
#endif
