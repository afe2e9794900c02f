/* getrusage(RUSAGE_SELF) and (RUSAGE_THREAD): CPU time, faults and peak memory of every node. */
#include "cpu.h"
enum { MEMORY = 48 << 20 };

int main(void)
{
	long each = work_for(0.02), rounds = 0;
	ready();
	do {
		work(each);
		rounds++;
	} while (!told() || rounds < 60);
	struct rusage all, thread, later;
	SYS(getrusage(RUSAGE_SELF, &all));
	SYS(getrusage(RUSAGE_THREAD, &thread));
	about("process", used(&all), rounds * 0.02);
	about("thread", used(&thread), rounds * 0.02);
	CHECK(seconds(all.ru_utime) > seconds(all.ru_stime), "user %.3f s, system %.3f s", seconds(all.ru_utime),
	      seconds(all.ru_stime));
	char *memory = SYS(mmap(0, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	SYS(madvise(memory, MEMORY, MADV_NOHUGEPAGE));
	for (int at = 0; at < MEMORY; at += 4096)
		memory[at] = 1;
	struct rusage last = all;
	for (int i = 0; i < 200; i++) {
		work(each / 10);
		SYS(getrusage(RUSAGE_SELF, &later));
		CHECK(seconds(later.ru_utime) >= seconds(last.ru_utime) && seconds(later.ru_stime) >= seconds(last.ru_stime),
		      "back: user %.6f to %.6f, system %.6f to %.6f", seconds(last.ru_utime), seconds(later.ru_utime),
		      seconds(last.ru_stime), seconds(later.ru_stime));
		last = later;
	}
	CHECK(later.ru_minflt - all.ru_minflt >= MEMORY / 4096, "%ld faults for %d pages", later.ru_minflt - all.ru_minflt,
	      MEMORY / 4096);
	CHECK(later.ru_maxrss >= MEMORY / 1024, "peak of %ld KiB", later.ru_maxrss);
	about("since", used(&later) - used(&all), 200 * 0.002);
	PASS();
}
