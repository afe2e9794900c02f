/* SSE, AVX and x87 registers and their control words stay what they were, wherever the loop was interrupted. */
#include "guest.h"
#include <cpuid.h>

static int has_avx(void)
{
	__builtin_cpu_init();
	return __builtin_cpu_supports("avx");
}

/* Loads all vector registers, spins without touching them, and stores them again. */
static void spin_avx(const uint64_t in[64], uint64_t out[64], long n)
{
	__asm__ volatile(
		"vmovdqu 0(%0), %%ymm0\n vmovdqu 32(%0), %%ymm1\n vmovdqu 64(%0), %%ymm2\n vmovdqu 96(%0), %%ymm3\n"
		"vmovdqu 128(%0), %%ymm4\n vmovdqu 160(%0), %%ymm5\n vmovdqu 192(%0), %%ymm6\n vmovdqu 224(%0), %%ymm7\n"
		"vmovdqu 256(%0), %%ymm8\n vmovdqu 288(%0), %%ymm9\n vmovdqu 320(%0), %%ymm10\n vmovdqu 352(%0), %%ymm11\n"
		"vmovdqu 384(%0), %%ymm12\n vmovdqu 416(%0), %%ymm13\n vmovdqu 448(%0), %%ymm14\n vmovdqu 480(%0), %%ymm15\n"
		"1: sub $1, %2\n jnz 1b\n"
		"vmovdqu %%ymm0, 0(%1)\n vmovdqu %%ymm1, 32(%1)\n vmovdqu %%ymm2, 64(%1)\n vmovdqu %%ymm3, 96(%1)\n"
		"vmovdqu %%ymm4, 128(%1)\n vmovdqu %%ymm5, 160(%1)\n vmovdqu %%ymm6, 192(%1)\n vmovdqu %%ymm7, 224(%1)\n"
		"vmovdqu %%ymm8, 256(%1)\n vmovdqu %%ymm9, 288(%1)\n vmovdqu %%ymm10, 320(%1)\n vmovdqu %%ymm11, 352(%1)\n"
		"vmovdqu %%ymm12, 384(%1)\n vmovdqu %%ymm13, 416(%1)\n vmovdqu %%ymm14, 448(%1)\n vmovdqu %%ymm15, 480(%1)\n"
		: "+r"(in), "+r"(out), "+r"(n)
		:
		: "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
		  "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static void spin_sse(const uint64_t in[64], uint64_t out[64], long n)
{
	__asm__ volatile("movdqu 0(%0), %%xmm0\n movdqu 32(%0), %%xmm7\n movdqu 64(%0), %%xmm15\n"
			 "1: sub $1, %2\n jnz 1b\n"
			 "movdqu %%xmm0, 0(%1)\n movdqu %%xmm7, 32(%1)\n movdqu %%xmm15, 64(%1)\n"
			 : "+r"(in), "+r"(out), "+r"(n)
			 :
			 : "memory", "cc", "xmm0", "xmm7", "xmm15");
}

int main(void)
{
	uint64_t in[64], out[64];
	int avx = has_avx();
	/* Unusual rounding and precision, which a fresh process does not have. */
	uint32_t mxcsr = 0x7f80, seen;
	uint16_t control = 0x0a7f, word;
	__asm__ volatile("ldmxcsr %0\n fldcw %1" : : "m"(mxcsr), "m"(control));
	__asm__ volatile("fldpi\n fldl2e");
	ready();
	uint64_t round = 0;
	do {
		fill(in, sizeof in, round++);
		memset(out, 0, sizeof out);
		if (avx) {
			spin_avx(in, out, 3000000);
			CHECK(!memcmp(in, out, sizeof in), "vector registers changed in round %lu", round);
		} else {
			spin_sse(in, out, 3000000);
			CHECK(!memcmp(in, out, 16) && !memcmp(in + 4, out + 4, 16) && !memcmp(in + 8, out + 8, 16),
			      "vector registers changed in round %lu", round);
		}
		__asm__ volatile("stmxcsr %0\n fnstcw %1" : "=m"(seen), "=m"(word));
		CHECK((seen & 0xffc0) == mxcsr && word == control, "control words became %x and %x", seen, word);
	} while (!told());
	double l2e, pi;
	__asm__ volatile("fstpl %0\n fstpl %1" : "=m"(l2e), "=m"(pi));
	CHECK(l2e > 1.4426 && l2e < 1.4427 && pi > 3.1415 && pi < 3.1416, "x87 stack: %f and %f", l2e, pi);
	PASS();
}
