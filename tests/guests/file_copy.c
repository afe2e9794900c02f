/* Data that goes from one descriptor to another without passing through the program. */
#include "behaviour.h"
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

BEHAVIOUR(sendfile_to_a_socket, "sendfile recvfrom")
{
	own_folder();
	int fd = file_with("f", "sent by the kernel"), pair[2];
	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	away();
	off_t at = 5;
	SAME(sendfile(pair[0], fd, &at, 6), 6);
	SAME(at, 11);
	SAME(lseek(fd, 0, SEEK_CUR), 0);
	char text[20];
	BYTES(text, recv(pair[1], text, 20, 0), "by the");
	SAME(sendfile(pair[0], fd, 0, 100), 18);
	SAME(lseek(fd, 0, SEEK_CUR), 18);
	BYTES(text, recv(pair[1], text, 20, 0), "sent by the kernel");
	FAILS(sendfile(pair[0], pair[1], 0, 1), EINVAL);
}

BEHAVIOUR(splice_and_tee, "splice tee pipe2")
{
	own_folder();
	int fd = file_with("f", "through two pipes"), out = file_with("g", "");
	away();
	int one[2], two[2];
	SYS(pipe2(one, 0));
	SYS(pipe2(two, O_NONBLOCK));
	loff_t at = 8;
	SAME(splice(fd, &at, one[1], 0, 100, 0), 9);
	SAME(at, 17);
	SAME(tee(one[0], two[1], 100, 0), 9);
	SAME(splice(one[0], 0, out, 0, 3, SPLICE_F_MOVE), 3);
	char text[20];
	BYTES(text, read(two[0], text, 20), "two pipes");
	BYTES(text, read(one[0], text, 20), " pipes");
	holds("g", "two");
	FAILS(tee(one[0], two[1], 1, SPLICE_F_NONBLOCK), EAGAIN);
	FAILS(splice(fd, 0, out, 0, 1, 0), EINVAL);
}

BEHAVIOUR(vmsplice_a_pipe, "vmsplice")
{
	int ends[2];
	SYS(pipe(ends));
	away();
	struct iovec part = { "given pages", 11 };
	SAME(vmsplice(ends[1], &part, 1, 0), 11);
	char text[20];
	BYTES(text, read(ends[0], text, 20), "given pages");
}

BEHAVIOUR(copy_of_a_range, "copy_file_range")
{
	own_folder();
	int from = file_with("f", "0123456789"), to = file_with("g", "abcdefghij");
	away();
	loff_t in = 2, out = 5;
	SAME(copy_file_range(from, &in, to, &out, 4, 0), 4);
	SAME(in * 100 + out, 609);
	holds("g", "abcde2345j");
	SAME(copy_file_range(from, 0, to, 0, 3, 0), 3);
	SAME(lseek(from, 0, SEEK_CUR) * 100 + lseek(to, 0, SEEK_CUR), 303);
	holds("g", "012de2345j");
	FAILS(copy_file_range(from, 0, to, 0, 3, 1), EINVAL);
}

BEHAVIOUR(large_reads_and_writes, "read write")
{
	own_folder();
	int fd = SYS(open("f", O_RDWR | O_CREAT, 0600));
	size_t size = 3 << 20;
	char *block = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(block, size, 1);
	away();
	/* One call, not several: a program may count on that. */
	SAME(write(fd, block, size), size);
	memset(block, 0, size);
	SYS(lseek(fd, 0, SEEK_SET));
	SAME(read(fd, block, size), size);
	SAME(verify(block, size, 1), -1);
	SAME(read(fd, block, size), 0);
}
