/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* CUDA's execution model on a CPU, as much of it as the kernels of this folder use: the same sources, compiled as C++.
 *
 *   a thread is a fibre on a stack of its own; a block runs on one thread of the machine, blocks of a grid on many
 *   a warp-wide operation is a meeting: it happens when every lane of its mask has come to the same one
 *   warps run in random order from meeting to meeting (seeded), so a missing barrier shows; shared memory begins as rubbish
 *   a thread that ends without having waited for the kernel in front (lq_wait_before): a fault; a launch may begin before those in front of it have
 *     run: a random block of it runs until it waits, so what it reads or writes too early is seen
 *   lanes that never come, come to another operation, or wait for ever: a fault in words, and the launch fails
 *
 * What this does not show: time, and the weaker memory order between warps of a real device. */
#ifndef LQ_EMU_H
#define LQ_EMU_H
#include <cstddef>
#include <cstdint>

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };

namespace emu {

struct place { dim3 thread, block, grid, threads; }; /* threadIdx blockIdx gridDim blockDim */
extern thread_local const place *here;
extern thread_local uint8_t *shared;                 /* of the block; as many bytes as the launch asked for */

/* The lanes of `mask` meet: the last to come calls fn with each lane's `mine` (NULL for lanes outside), then all go on. `what` is
 * compared by address. */
void meet(unsigned mask, const char *what, void *mine, void (*fn)(void *const lane[32], unsigned mask));
void sync_threads();
void wait_before();
void prefetch(const void *p, uint32_t bytes);        /* reads its ends; a fault where p or bytes is no multiple of 16 */

typedef void (*body)(const void *arg);
enum { most_shared = 64 << 10 };                     /* what the smallest GPU that has kernels gives a block */
struct grid { const char *kernel; dim3 blocks, threads; size_t shared_bytes; body fn; const void *arg; };
/* A random block of a launch to come runs until each of its threads waits or has ended. NULL: no memory, or too many have begun. All on one thread of the machine. */
struct block_begun;
block_begun *begin(const grid &g);
/* Runs every block, of `begun` (NULL: none) what is left. NULL, or what went wrong (valid until the next launch of this thread). */
const char *launch(const grid &g, block_begun *begun = nullptr);
void seed(uint64_t s);                               /* of the order of warps in launches to come */

} // namespace emu

#define __global__ static
#define __device__
#define __host__
#ifdef LQ_EMU_SMALL
#define __forceinline__ inline
#else
#define __forceinline__ inline __attribute__((always_inline))
#endif
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (emu::here->thread)
#define blockIdx (emu::here->block)
#define blockDim (emu::here->threads)
#define gridDim (emu::here->grid)
#define __syncthreads() emu::sync_threads()
#endif
