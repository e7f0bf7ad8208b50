// Nearest neighbours between two clouds in both directions, and the gradient through these pairs.
//
// Each point of either cloud has a thread of its own. Ties go to the lowest index.

static constexpr int TILE = 1024;
static constexpr float INFINITELY_FAR = 3.402823466e+38f;

__device__ __forceinline__ float squared_distance(const float* a, const float* b) {
    float x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2];
    return (x * x + y * y) + z * z;
}

// A point of a pair of clouds, and the other cloud. Offsets count points over the whole batch.
struct Place {
    bool in_first;    // cloud of the pair
    int point;        // index within its cloud
    long long own;    // offset of the point
    long long other;  // offset of the other cloud
    int count;        // points of the other cloud
};

__device__ __forceinline__ Place place(long long pair, int point, bool in_first, int n, int m) {
    long long start1 = pair * n, start2 = pair * m;
    return {in_first, point, (in_first ? start1 : start2) + point, in_first ? start2 : start1, in_first ? m : n};
}

// The place of a thread where the points of a pair follow each other, n of the first cloud and m of the second.
__device__ __forceinline__ Place place_in_row(long long thread, int n, int m) {
    long long pair = thread / (n + m);
    int number = thread % (n + m);
    return place(pair, number < n ? number : number - n, number < n, n, m);
}

__device__ __forceinline__ long long global_thread() {
    return blockIdx.x * (long long)blockDim.x + threadIdx.x;
}

// For many small pairs: the other cloud is read through the cache; no thread waits for another.
extern "C" __global__ void __launch_bounds__(256) chamfer_small(const float* xyz1, const float* xyz2, float* dist1, float* dist2, long long* idx1, long long* idx2, int batch, int n, int m) {
    if (global_thread() >= (long long)batch * (n + m)) return;
    Place at = place_in_row(global_thread(), n, m);
    const float* own = (at.in_first ? xyz1 : xyz2) + 3 * at.own;
    const float* other = (at.in_first ? xyz2 : xyz1) + 3 * at.other;
    float center[3] = {own[0], own[1], own[2]};
    float best = INFINITELY_FAR;
    int nearest = 0;
    for (int i = 0; i < at.count; ++i) {
        float distance = squared_distance(center, other + 3 * i);
        if (distance < best) best = distance, nearest = i;
    }
    (at.in_first ? idx1 : idx2)[at.own] = nearest;
    (at.in_first ? dist1 : dist2)[at.own] = squared_distance(center, other + 3 * nearest);  // NaN shows again
}

// For large pairs: a block takes points of one cloud; the other passes through shared memory in tiles.
extern "C" __global__ void __launch_bounds__(128) chamfer_large(const float* xyz1, const float* xyz2, float* dist1, float* dist2, long long* idx1, long long* idx2, int n, int m) {
    alignas(16) __shared__ float x[TILE];
    alignas(16) __shared__ float y[TILE];
    alignas(16) __shared__ float z[TILE];
    int threads = blockDim.x, blocks1 = (n - 1) / threads + 1, blocks2 = (m - 1) / threads + 1;
    int block = blockIdx.x % (blocks1 + blocks2);
    bool in_first = block < blocks1;
    int point = (in_first ? block : block - blocks1) * threads + threadIdx.x, last = (in_first ? n : m) - 1;
    Place at = place(blockIdx.x / (blocks1 + blocks2), min(point, last), in_first, n, m);  // all keep the barriers whole
    const float* own = (in_first ? xyz1 : xyz2) + 3 * at.own;
    const float* other = (in_first ? xyz2 : xyz1) + 3 * at.other;
    float center[3] = {own[0], own[1], own[2]};
    float best = INFINITELY_FAR;
    int nearest = 0;
    for (int start = 0; start < at.count; start += TILE) {
        int size = min(TILE, at.count - start);
        __syncthreads();
        for (int i = threadIdx.x; i < size; i += threads) {
            const float* from = other + 3LL * (start + i);
            x[i] = from[0], y[i] = from[1], z[i] = from[2];
        }
        __syncthreads();
#pragma unroll 8
        for (int i = 0; i < size; ++i) {
            float to[3] = {x[i], y[i], z[i]};
            float distance = squared_distance(center, to);
            if (distance < best) best = distance, nearest = start + i;
        }
    }
    if (point > last) return;
    (in_first ? idx1 : idx2)[at.own] = nearest;
    (in_first ? dist1 : dist2)[at.own] = squared_distance(center, other + 3LL * nearest);  // NaN shows again
}

// Gradient by gathering: each point looks for those that chose it. No atomics: the same sums in the same order each time.
extern "C" __global__ void __launch_bounds__(256) chamfer_backward_gather(const float* grad_dist1, const float* grad_dist2, const float* xyz1, const float* xyz2, const long long* idx1, const long long* idx2, float* grad1, float* grad2, int batch, int n, int m) {
    if (global_thread() >= (long long)batch * (n + m)) return;
    Place at = place_in_row(global_thread(), n, m);
    const float* own = (at.in_first ? xyz1 : xyz2) + 3 * at.own;
    const float* other = (at.in_first ? xyz2 : xyz1) + 3 * at.other;
    const long long* choice_of_other = (at.in_first ? idx2 : idx1) + at.other;
    const float* weight_of_other = (at.in_first ? grad_dist2 : grad_dist1) + at.other;
    const float* nearest = other + 3 * (at.in_first ? idx1 : idx2)[at.own];
    float weight = 2 * (at.in_first ? grad_dist1 : grad_dist2)[at.own];
    float sum[3];
    for (int c = 0; c < 3; ++c) sum[c] = weight * (own[c] - nearest[c]);
    for (int i = 0; i < at.count; ++i)
        if (choice_of_other[i] == at.point)
            for (int c = 0; c < 3; ++c) sum[c] += 2 * weight_of_other[i] * (own[c] - other[3LL * i + c]);
    for (int c = 0; c < 3; ++c) (at.in_first ? grad1 : grad2)[3 * at.own + c] = sum[c];
}

// Gradient by scattering: each point adds its pull to itself and to its nearest. The gradients start as zeros.
extern "C" __global__ void __launch_bounds__(256) chamfer_backward_scatter(const float* grad_dist1, const float* grad_dist2, const float* xyz1, const float* xyz2, const long long* idx1, const long long* idx2, float* grad1, float* grad2, int batch, int n, int m) {
    if (global_thread() >= (long long)batch * (n + m)) return;
    Place at = place_in_row(global_thread(), n, m);
    long long nearest = at.other + (at.in_first ? idx1 : idx2)[at.own];
    float weight = 2 * (at.in_first ? grad_dist1 : grad_dist2)[at.own];
    for (int c = 0; c < 3; ++c) {
        float pull = weight * ((at.in_first ? xyz1 : xyz2)[3 * at.own + c] - (at.in_first ? xyz2 : xyz1)[3 * nearest + c]);
        atomicAdd((at.in_first ? grad1 : grad2) + 3 * at.own + c, pull);
        atomicAdd((at.in_first ? grad2 : grad1) + 3 * nearest + c, -pull);
    }
}
