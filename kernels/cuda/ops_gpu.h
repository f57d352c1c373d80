/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The operations of cu.h as PTX. Turing has no m16n8k16: two m16n8k8, or four m8n8k16 of bytes, on the same fragments. */
#ifndef LQ_OPS_GPU_H
#define LQ_OPS_GPU_H
#include <cuda_runtime.h>
#include <stdint.h>

#define LQ_OP static __device__ __forceinline__
#define LQ_UNROLL _Pragma("unroll")

extern __shared__ __align__(128) unsigned char lq_shared_memory[];
LQ_OP unsigned char *lq_shared() { return lq_shared_memory; }
/* blockIdx and threadIdx.x, read anew each time: nothing is kept in a register for them. */
LQ_OP uint32_t lq_block_x() {
    uint32_t v;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(v));
    return v;
}
LQ_OP uint32_t lq_block_y() {
    uint32_t v;
    asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(v));
    return v;
}
LQ_OP uint32_t lq_thread_x() {
    uint32_t v;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(v));
    return v;
}
LQ_OP void lq_sync_warp() { __syncwarp(); }

/* A kernel that was queued ahead (cuda.h) may begin before the one in front of it has ended, once every block of that one has said lq_let_next or ended.
 * lq_wait_before: until it has ended and what it wrote is seen; at once where it has. Before 9.0 there is no such thing. */
LQ_OP void lq_let_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
LQ_OP void lq_wait_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* Into the second-level cache; both multiples of 16. */
LQ_OP void lq_prefetch(const void *p, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" : : "l"(__cvta_generic_to_global(p)), "r"(bytes) : "memory");
#else
    (void)p, (void)bytes;
#endif
}

/* Weights are read once, past L1, and no kernel writes them: they may be loaded before lq_wait_before. */
LQ_OP uint4 lq_load_stream(const uint4 *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

/* The same of what a kernel in front may have written: after lq_wait_before. */
LQ_OP uint4 lq_load_written(const uint4 *p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}

template <int LUT> LQ_OP uint32_t lq_lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(LUT));
    return d;
}
/* Where p lies in shared memory, and a word from there: an address that the compiler does not take apart. */
LQ_OP uint32_t lq_place(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
LQ_OP uint32_t lq_word_at(uint32_t place) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(place));
    return v;
}
LQ_OP uint32_t lq_bytes(uint32_t a, uint32_t b, uint32_t select) { return __byte_perm(a, b, select); }

LQ_OP uint32_t lq_sub2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
LQ_OP uint32_t lq_fma2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
LQ_OP uint32_t lq_mul2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
LQ_OP uint16_t lq_half(float v) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}
LQ_OP float lq_float(uint16_t h) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
    return v;
}

/* 0 + step (s sum - z ones), every operation rounded: what packed_idot says, never a fused one. */
LQ_OP double lq_scaled(double step, double s, double sum, double z, double ones) { return __dadd_rn(0.0, __dmul_rn(step, __dsub_rn(__dmul_rn(s, sum), __dmul_rn(z, ones)))); }

/* Bit i: lane i says so. */
LQ_OP uint32_t lq_ballot(bool v) { return __ballot_sync(0xffffffffu, v); }
template <typename T> LQ_OP T lq_shuffle_xor(T v, int lanes) { return __shfl_xor_sync(0xffffffffu, v, lanes); }

/* Rounded each by itself, never fused with another. */
LQ_OP float lq_mul(float a, float b) { return __fmul_rn(a, b); }
LQ_OP float lq_add(float a, float b) { return __fadd_rn(a, b); }
LQ_OP float lq_sub(float a, float b) { return __fsub_rn(a, b); }
LQ_OP uint32_t lq_bits_of(float v) { return __float_as_uint(v); }
LQ_OP float lq_of_bits(uint32_t u) { return __uint_as_float(u); }

/* Lane 4 g + q has elements 2 q, 2 q + 1 of row g of an 8 x 8 matrix of halves, and gets those of column g. */
LQ_OP uint32_t lq_transpose(uint32_t v) {
    uint32_t d;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(v));
    return d;
}

LQ_OP void lq_mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

/* Unsigned bytes times signed bytes, summed as int32. */
LQ_OP void lq_mma_u8s8(int32_t c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(c[0]), "+r"(c[1]) : "r"(a[0]), "r"(b0));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(c[2]), "+r"(c[3]) : "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(c[0]), "+r"(c[1]) : "r"(a[2]), "r"(b1));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(c[2]), "+r"(c[3]) : "r"(a[3]), "r"(b1));
#endif
}
#endif
