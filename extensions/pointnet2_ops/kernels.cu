// Farthest point sampling, ball query and the three nearest neighbours; reference.py says what is right.
// Squared distances are (dx² + dy²) + dz², not fused, as there; ties go to the lowest index.

static const float FAR = 3.402823466e+38f;
static const float PADDING = -1.0f;  // in place of the squared distance of a point that is never picked
static const unsigned ALL_LANES = 0xffffffff;

__device__ __forceinline__ float squared_norm(float x, float y, float z) { return (x * x + y * y) + z * z; }

// ---- Farthest point sampling: a block per cloud ----

static const int OWN = 8;  // points of a thread

struct Candidate {
    float distance;
    int index;
};

__device__ __forceinline__ Candidate farther(Candidate a, Candidate b) {
    return b.distance > a.distance || (b.distance == a.distance && b.index < a.index) ? b : a;
}

__device__ __forceinline__ Candidate farthest_of_warp(Candidate mine) {
    for (int step = 16; step > 0; step /= 2) {
        Candidate other;
        other.distance = __shfl_xor_sync(ALL_LANES, mine.distance, step);
        other.index = __shfl_xor_sync(ALL_LANES, mine.index, step);
        mine = farther(mine, other);
    }
    return mine;
}

// The index of the farthest candidate, known to all threads. Slots alternate between rounds, so one barrier is enough:
// a slot is written again only after the next round's barrier, which every reader of this round has passed.
__device__ __forceinline__ int farthest_of_block(Candidate mine, int round) {
    __shared__ Candidate slots[2][32];
    int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    mine = farthest_of_warp(mine);
    if (lane == 0) slots[round % 2][threadIdx.x / 32] = mine;
    __syncthreads();
    return farthest_of_warp(slots[round % 2][lane < warps ? lane : 0]).index;
}

__device__ __forceinline__ float before_the_start(float x, float y, float z) {
    return squared_norm(x, y, z) <= 1e-3f ? PADDING : FAR;
}

// Up to OWN points per thread, in registers. Thread t owns the points t, t + threads, …; those beyond n are padding and
// lose to point 0.
extern "C" __global__ void __launch_bounds__(1024) furthest_point_sample_registers(const float* __restrict__ xyz, long long* __restrict__ picked, int n, int npoint) {
    const float* cloud = xyz + (long long)blockIdx.x * n * 3;
    long long* order = picked + (long long)blockIdx.x * npoint;
    float x[OWN], y[OWN], z[OWN], nearest[OWN];
#pragma unroll
    for (int k = 0; k < OWN; ++k) {
        int i = threadIdx.x + k * blockDim.x;
        x[k] = i < n ? cloud[3 * i] : 0.0f;
        y[k] = i < n ? cloud[3 * i + 1] : 0.0f;
        z[k] = i < n ? cloud[3 * i + 2] : 0.0f;
        nearest[k] = before_the_start(x[k], y[k], z[k]);
    }
    int last = 0;
    if (threadIdx.x == 0) order[0] = last;
    for (int round = 1; round < npoint; ++round) {
        float last_x = cloud[3 * last], last_y = cloud[3 * last + 1], last_z = cloud[3 * last + 2];
        Candidate best = {2 * PADDING, 0};
#pragma unroll
        for (int k = 0; k < OWN; ++k) {
            float to_last = squared_norm(x[k] - last_x, y[k] - last_y, z[k] - last_z);
            if (to_last < nearest[k]) nearest[k] = to_last;
            if (nearest[k] > best.distance) best = {nearest[k], (int)(threadIdx.x + k * blockDim.x)};
        }
        last = farthest_of_block(best, round);
        if (threadIdx.x == 0) order[round] = last;
    }
}

// Any number of points: distances (B, n) in global memory, each read and written by its own thread only.
extern "C" __global__ void __launch_bounds__(1024) furthest_point_sample_global(const float* __restrict__ xyz, float* __restrict__ distances, long long* __restrict__ picked, int n, int npoint) {
    const float* cloud = xyz + (long long)blockIdx.x * n * 3;
    float* nearest = distances + (long long)blockIdx.x * n;
    long long* order = picked + (long long)blockIdx.x * npoint;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        nearest[i] = before_the_start(cloud[3 * i], cloud[3 * i + 1], cloud[3 * i + 2]);
    int last = 0;
    if (threadIdx.x == 0) order[0] = last;
    for (int round = 1; round < npoint; ++round) {
        float last_x = cloud[3 * last], last_y = cloud[3 * last + 1], last_z = cloud[3 * last + 2];
        Candidate best = {2 * PADDING, 0};
#pragma unroll 4
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            float to_last = squared_norm(cloud[3 * i] - last_x, cloud[3 * i + 1] - last_y, cloud[3 * i + 2] - last_z);
            float distance = to_last < nearest[i] ? to_last : nearest[i];
            nearest[i] = distance;
            if (distance > best.distance) best = {distance, i};
        }
        last = farthest_of_block(best, round);
        if (threadIdx.x == 0) order[round] = last;
    }
}

// ---- Searches: a thread per query, the points of its cloud in tiles of shared memory ----

static const int TILE = 512;

struct alignas(16) Point {
    float x, y, z;
};

__device__ __forceinline__ Point point_at(const float* cloud, int i) {
    return {cloud[3 * i], cloud[3 * i + 1], cloud[3 * i + 2]};
}

// Fills the tile with the points from `start` on, and returns how many there are. All threads of the block take part.
__device__ __forceinline__ int load_tile(Point* tile, const float* cloud, int start, int n) {
    int size = min(TILE, n - start);
    __syncthreads();  // the tile before has been read
    for (int i = threadIdx.x; i < size; i += blockDim.x) tile[i] = point_at(cloud, start + i);
    __syncthreads();
    return size;
}

__device__ __forceinline__ float squared_distance(Point a, Point b) {
    return squared_norm(a.x - b.x, a.y - b.y, a.z - b.z);
}

// Grid (B, query blocks).
extern "C" __global__ void __launch_bounds__(128) ball_query(const float* __restrict__ xyz, const float* __restrict__ queries, long long* __restrict__ indices, int n, int m, int nsample, float squared_radius) {
    __shared__ Point tile[TILE];
    const float* cloud = xyz + (long long)blockIdx.x * n * 3;
    int query = blockIdx.y * blockDim.x + threadIdx.x;
    bool active = query < m;
    Point center = point_at(queries + (long long)blockIdx.x * m * 3, active ? query : 0);
    long long* mine = indices + ((long long)blockIdx.x * m + query) * nsample;
    int found = active ? 0 : nsample, first = 0;
    for (int start = 0; start < n; start += TILE) {
        int size = load_tile(tile, cloud, start, n);
        for (int i = 0; i < size && found < nsample; ++i) {
            if (squared_distance(center, tile[i]) < squared_radius) {
                if (found == 0) first = start + i;
                mine[found++] = start + i;
            }
        }
    }
    for (; found < nsample; ++found) mine[found] = first;
}

// Grid (B, query blocks).
extern "C" __global__ void __launch_bounds__(128) three_nn(const float* __restrict__ unknown, const float* __restrict__ known, float* __restrict__ distances, long long* __restrict__ indices, int n, int m) {
    __shared__ Point tile[TILE];
    const float* cloud = known + (long long)blockIdx.x * m * 3;
    int query = blockIdx.y * blockDim.x + threadIdx.x;
    bool active = query < n;
    Point center = point_at(unknown + (long long)blockIdx.x * n * 3, active ? query : 0);
    float d0 = FAR, d1 = FAR, d2 = FAR;
    int i0 = 0, i1 = 0, i2 = 0;
    for (int start = 0; start < m; start += TILE) {
        int size = load_tile(tile, cloud, start, m);
        for (int i = 0; i < size; ++i) {
            float d = squared_distance(center, tile[i]);
            if (d < d0) {  // strictly, so that the first of equals stays first
                d2 = d1, i2 = i1, d1 = d0, i1 = i0, d0 = d, i0 = start + i;
            } else if (d < d1) {
                d2 = d1, i2 = i1, d1 = d, i1 = start + i;
            } else if (d < d2) {
                d2 = d, i2 = start + i;
            }
        }
    }
    if (!active) return;
    long long at = ((long long)blockIdx.x * n + query) * 3;
    distances[at] = sqrtf(d0), distances[at + 1] = sqrtf(d1), distances[at + 2] = sqrtf(d2);
    indices[at] = i0, indices[at + 1] = i1, indices[at + 2] = i2;
}
