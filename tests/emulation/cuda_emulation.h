// Runs CUDA kernels on a CPU: one block at a time, each thread a fiber that runs until the next barrier.
// Fibers are resumed in ascending or descending order, so that a missing barrier shows in one of the two.
#pragma once
#include <ucontext.h>

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

struct dim3 {
    unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;
static constexpr int warpSize = 32;

#define __global__
#define __device__
#define __shared__ static __attribute__((section("emulated_shared")))
#define __forceinline__ inline
#define __launch_bounds__(...)

extern "C" char __start_emulated_shared[] __attribute__((weak));  // the linker's bounds of all shared memory
extern "C" char __stop_emulated_shared[] __attribute__((weak));

namespace emulation {
enum State { READY, AT_WARP_BARRIER, AT_BLOCK_BARRIER, DONE };
struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    State state;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static unsigned current;
static std::function<void()> body;

static void wait(State at) {
    fibers[current].state = at;
    swapcontext(&fibers[current].context, &scheduler);
}
static void enter() {
    body();
    fibers[current].state = DONE;
}
// Lets fibers go on if all of them that still live wait at the barrier.
static bool release(State barrier, unsigned first, unsigned last) {
    unsigned waiting = 0, living = 0;
    for (unsigned i = first; i < last; ++i) {
        waiting += fibers[i].state == barrier;
        living += fibers[i].state != DONE;
    }
    if (!waiting || waiting != living) return false;
    for (unsigned i = first; i < last; ++i)
        if (fibers[i].state == barrier) fibers[i].state = READY;
    return true;
}
// Runs a warp as far as it gets alone: only __syncthreads makes it wait for other warps.
static void run_warp(unsigned first, unsigned last, bool descending) {
    do
        for (unsigned i = first; i < last; ++i) {
            current = descending ? first + last - 1 - i : i;
            if (fibers[current].state != READY) continue;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &fibers[current].context);
        }
    while (release(AT_WARP_BARRIER, first, last));
}
// What was in shared memory before a block starts is not to be relied on: NaN as floats, -1 as ints.
static void poison_shared_memory() {
    if (__start_emulated_shared) memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
}
static void run_block(unsigned threads, bool descending) {
    poison_shared_memory();
    fibers.resize(threads);
    for (auto& fiber : fibers) {
        fiber.state = READY;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, enter, 0);
    }
    do
        for (unsigned i = 0; i < threads; i += warpSize) {
            unsigned first = descending ? (threads - 1) / warpSize * warpSize - i : i;
            run_warp(first, std::min(first + warpSize, threads), descending);
        }
    while (release(AT_BLOCK_BARRIER, 0, threads));
    for (auto& fiber : fibers)
        if (fiber.state != DONE) {
            fprintf(stderr, "emulation: threads of a block wait at different barriers\n");
            abort();
        }
}
static void run_grid(dim3 grid, unsigned threads, bool descending, std::function<void()> kernel) {
    gridDim = grid;
    blockDim = {threads, 1, 1};
    body = kernel;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = {x, y, z};
                run_block(threads, descending);
            }
}
// One value of each lane, readable by the others between two warp barriers.
template <class T>
static T exchange(T value, unsigned source_lane) {
    static_assert(sizeof(T) <= 8);
    static char slots[1024][8];
    unsigned thread = threadIdx.x, warp = thread / warpSize * warpSize;
    memcpy(slots[thread], &value, sizeof(T));
    wait(AT_WARP_BARRIER);
    if (source_lane < warpSize && warp + source_lane < blockDim.x) memcpy(&value, slots[warp + source_lane], sizeof(T));
    wait(AT_WARP_BARRIER);
    threadIdx.x = thread;
    return value;
}
}  // namespace emulation

// After a barrier the scheduler has set threadIdx again, so kernels may keep reading it.
inline void __syncthreads() { emulation::wait(emulation::AT_BLOCK_BARRIER); }
inline void __syncwarp(unsigned = 0xffffffff) { emulation::wait(emulation::AT_WARP_BARRIER); }
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulation::exchange(value, lane & 31);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulation::exchange(value, (threadIdx.x & 31) ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int delta) {
    return emulation::exchange(value, (threadIdx.x & 31) + delta);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta) {
    return emulation::exchange(value, (threadIdx.x & 31) - delta);
}
template <class T>
T atomicAdd(T* address, T value) {
    T old = *address;
    *address += value;
    return old;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    static unsigned votes[32];
    unsigned warp = threadIdx.x / warpSize, own = 1u << threadIdx.x % warpSize;
    votes[warp] = predicate ? votes[warp] | own : votes[warp] & ~own;
    emulation::wait(emulation::AT_WARP_BARRIER);
    unsigned result = votes[warp];
    emulation::wait(emulation::AT_WARP_BARRIER);
    return result;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
