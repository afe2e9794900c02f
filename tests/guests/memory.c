/* Memory: mappings of every kind that a process may have alone. */
#include "behaviour.h"
#include <sys/uio.h>

#define PAGE 4096ul

static char *anonymous(size_t bytes)
{
	char *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
	return at;
}

BEHAVIOUR(private_memory, "")
{
	char *early = anonymous(64 * PAGE);
	fill(early, 64 * PAGE, 1);
	away();
	SAME(verify(early, 64 * PAGE, 1), -1);
	char *late = anonymous(64 * PAGE);
	for (size_t i = 0; i < 64 * PAGE; i++)
		SAME(late[i], 0);
	fill(late, 64 * PAGE, 2);
	SYS(munmap(early, 32 * PAGE));
	SAME(verify(early + 32 * PAGE, 32 * PAGE, 1 + 32 * PAGE / 8), -1);
	SAME(verify(late, 64 * PAGE, 2), -1);
}

BEHAVIOUR(fixed_addresses, "")
{
	char *area = anonymous(16 * PAGE);
	away();
	char *hole = mmap(area + 4 * PAGE, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	SAME((intptr_t)hole, (intptr_t)area + 4 * (long)PAGE);
	SAME((intptr_t)mmap(area, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), -1);
	SAME(errno, EEXIST);
	SYS(munmap(area + 4 * PAGE, PAGE));
	SAME((intptr_t)mmap(area + 4 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
	     (intptr_t)hole);
	SAME((intptr_t)mmap(0, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), -1);
	SAME(errno, EINVAL);
}

BEHAVIOUR(mappings_grow_and_move, "")
{
	char *area = anonymous(8 * PAGE);
	fill(area, 8 * PAGE, 3);
	away();
	char *more = mremap(area, 8 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);
	CHECK(more != MAP_FAILED, "mremap: %s", strerror(errno));
	SAME(verify(more, 8 * PAGE, 3), -1);
	SAME(more[63 * PAGE], 0);
	char *target = anonymous(64 * PAGE);
	SAME((intptr_t)mremap(more, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target), (intptr_t)target);
	SAME(verify(target, 8 * PAGE, 3), -1);
	SAME((intptr_t)mremap(target, 64 * PAGE, 4 * PAGE, 0), (intptr_t)target);
	SAME((intptr_t)mremap(target + 10 * PAGE, PAGE, 2 * PAGE, 0), -1);
	SAME(errno, EFAULT);
}

BEHAVIOUR(protections, "read write")
{
	char *area = anonymous(4 * PAGE);
	int ends[2];
	SYS(pipe(ends));
	SYS(mprotect(area + PAGE, PAGE, PROT_NONE));
	away();
	FAILS(write(ends[1], area + PAGE, 1), EFAULT);
	SYS(mprotect(area + PAGE, PAGE, PROT_READ));
	SAME(write(ends[1], area + PAGE, 1), 1);
	FAILS(read(ends[0], area + PAGE, 1), EFAULT);
	SYS(mprotect(area, 4 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC));
	static const unsigned char code[] = { 0xb8, 0x2a, 0, 0, 0, 0xc3 };
	memcpy(area + PAGE, code, sizeof code);
	SAME(((int (*)(void))(area + PAGE))(), 42);
	FAILS(mprotect(area + 1, PAGE, PROT_READ), EINVAL);
}

BEHAVIOUR(half_a_buffer, "read write pread64")
{
	own_folder();
	char *area = anonymous(2 * PAGE);
	SYS(munmap(area + PAGE, PAGE));
	int fd = SYS(open("f", O_RDWR | O_CREAT, 0600)), ends[2];
	SYS(pipe(ends));
	memset(area, 'h', PAGE);
	away();
	/* A file gets as much as is there, a pipe nothing. */
	SAME(write(fd, area + PAGE - 10, 20), 10);
	FAILS(write(ends[1], area + PAGE - 10, 20), EFAULT);
	SAME(pread(fd, area + PAGE - 4, 8, 0), 4);
	SAME(write(ends[1], "x", 1), 1);
	FAILS(write(fd, area + PAGE, 1), EFAULT);
	FAILS(pread(fd, area + PAGE, 1, 0), EFAULT);
	FAILS(syscall(SYS_read, ends[0], 8, 1), EFAULT);
}

BEHAVIOUR(advice, "")
{
	char *area = anonymous(16 * PAGE);
	fill(area, 16 * PAGE, 4);
	SYS(madvise(area, 4 * PAGE, MADV_DONTNEED));
	away();
	SAME(area[0], 0);
	SAME(verify(area + 4 * PAGE, 12 * PAGE, 4 + 4 * PAGE / 8), -1);
	SYS(madvise(area + 8 * PAGE, 8 * PAGE, MADV_DONTNEED));
	SAME(area[8 * PAGE], 0);
	SYS(madvise(area, 16 * PAGE, MADV_NORMAL));
	SYS(madvise(area, 16 * PAGE, MADV_WILLNEED));
	FAILS(madvise(area, PAGE, 9999), EINVAL);
	FAILS(madvise(area + 5, PAGE, MADV_NORMAL), EINVAL);
}

BEHAVIOUR(the_heap_s_end, "")
{
	char *begin = sbrk(0);
	CHECK(sbrk(8 * PAGE) == begin, "sbrk: %s", strerror(errno));
	fill(begin, 8 * PAGE, 5);
	away();
	SAME((intptr_t)sbrk(0), (intptr_t)begin + 8 * (long)PAGE);
	SAME(verify(begin, 8 * PAGE, 5), -1);
	CHECK(sbrk(4 * PAGE) == begin + 8 * PAGE, "sbrk away: %s", strerror(errno));
	begin[11 * PAGE] = 1;
	CHECK(sbrk(-12 * (long)PAGE) == begin + 12 * PAGE, "sbrk back");
}

BEHAVIOUR(locked_memory, "")
{
	char *area = anonymous(4 * PAGE);
	fill(area, 4 * PAGE, 6);
	SYS(mlock(area, PAGE));
	away();
	SAME(verify(area, 4 * PAGE, 6), -1);
	SYS(mlock(area, 2 * PAGE));
	SYS(munlock(area, 2 * PAGE));
	FAILS(mlock((void *)(PAGE * 3), PAGE), ENOMEM);
	unsigned char in[4];
	SYS(mincore(area, 4 * PAGE, in));
	SAME(in[0] & 1, 1);
}

BEHAVIOUR(stack_that_grows_down, "")
{
	char *area = anonymous(256 * PAGE);
	SYS(munmap(area, 256 * PAGE));
	char *low = mmap(area + 192 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	CHECK(low != MAP_FAILED, "mmap: %s", strerror(errno));
	low[0] = 'a';
	away();
	for (int page = 1; page < 20; page++)
		*(volatile char *)(low - page * PAGE) = (char)page;
	SAME(low[0], 'a');
	SAME(low[-19 * (long)PAGE], 19);
}

BEHAVIOUR(private_file, "read")
{
	own_folder();
	int fd = file_with("f", "content of a file");
	char *early = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	early[0] = 'C';
	away();
	CHECK(!memcmp(early, "Content of a file", 17), "the early one is %.20s", early);
	char *late = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(late != MAP_FAILED, "mmap: %s", strerror(errno));
	CHECK(!memcmp(late, "content of a file", 17), "the late one is %.20s", late);
	late[1] = 'O';
	SAME(early[1], 'o');
	SAME(pwrite(fd, "x", 1, 16), 1);
	holds("f", "content of a filx");
	SYS(munmap(late, PAGE));
}

BEHAVIOUR(map_without_right, "openat")
{
	own_folder();
	close(file_with("f", "x"));
	away();
	int fd = SYS(open("f", O_WRONLY));
	SAME((intptr_t)mmap(0, PAGE, PROT_READ, MAP_PRIVATE, fd, 0), -1);
	SAME(errno, EACCES);
	SAME((intptr_t)mmap(0, PAGE, PROT_READ, MAP_PRIVATE, 99, 0), -1);
	SAME(errno, EBADF);
	int ends[2];
	SYS(pipe(ends));
	SAME((intptr_t)mmap(0, PAGE, PROT_READ, MAP_PRIVATE, ends[0], 0), -1);
	SAME(errno, ENODEV);
}

BEHAVIOUR(memory_of_oneself, "process_vm_readv")
{
	char from[20] = "read from oneself", to[20] = "";
	away();
	struct iovec local = { to, 17 }, remote = { from, 17 };
	SAME(process_vm_readv(getpid(), &local, 1, &remote, 1, 0), 17);
	CHECK(!strcmp(to, from), "it is %s", to);
	strcpy(to, "WRITTEN");
	local.iov_len = remote.iov_len = 7;
	SAME(process_vm_writev(getpid(), &local, 1, &remote, 1, 0), 7);
	CHECK(!strcmp(from, "WRITTENom oneself"), "it is %s", from);
	remote.iov_base = (void *)8;
	FAILS(process_vm_readv(getpid(), &local, 1, &remote, 1, 0), EFAULT);
}

BEHAVIOUR(shared_file_is_written_back, "msync")
{
	own_folder();
	int fd = file_with("f", "content");
	char *map = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
	away();
	map[0] = 'C';
	SYS(msync(map, PAGE, MS_SYNC));
	holds("f", "Content");
}
