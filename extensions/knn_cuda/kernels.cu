// k nearest neighbours among 3-D points: one warp per query, no distance matrix.
//
// The k best so far lie sorted across the registers of the warp: slot 32 * row + lane. The lanes measure 32 points at a
// time; the few that beat the k-th best enter the list one by one, in the order of their indices, each behind its equals,
// so that ties go to the lowest index.

static constexpr unsigned ALL_LANES = 0xffffffff;
static constexpr int WARP = 32;
static constexpr int TILE = 1024;
static constexpr float EMPTY = 3.402823466e+38f;  // of a slot that holds no point yet
static constexpr float FARTHEST = 3.4e+38f;       // what NaN and overflow count as, so that they still come before EMPTY

__device__ __forceinline__ float squared_distance(const float* a, const float* b) {
    float x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2];
    return (x * x + y * y) + z * z;
}

template <int ROWS>
__device__ __forceinline__ void insert(float (&best)[ROWS], int (&index)[ROWS], float distance, int point, int lane) {
#pragma unroll
    for (int row = ROWS - 1; row >= 0; --row) {
        float before = __shfl_up_sync(ALL_LANES, best[row], 1);
        int point_before = __shfl_up_sync(ALL_LANES, index[row], 1);
        if (row > 0) {
            float last = __shfl_sync(ALL_LANES, best[row > 0 ? row - 1 : 0], WARP - 1);
            int point_last = __shfl_sync(ALL_LANES, index[row > 0 ? row - 1 : 0], WARP - 1);
            if (lane == 0) before = last, point_before = point_last;
        } else if (lane == 0) {
            before = -1.0f;  // nothing stands before the first slot
        }
        if (best[row] > distance) {  // this slot moves back by one: it takes what stood before it, or the new point
            bool moved = before > distance;
            best[row] = moved ? before : distance;
            index[row] = moved ? point_before : point;
        }
    }
}

template <int ROWS>  // of 32 slots; 32 * (ROWS - 1) < k <= 32 * ROWS
__device__ __forceinline__ void search(const float* ref, const float* query, float* distances, long long* indices, int n, int m, int k) {
    __shared__ float tile[3 * TILE];
    int warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    int blocks_per_cloud = (m - 1) / warps + 1;
    long long cloud = blockIdx.x / blocks_per_cloud;
    int number = blockIdx.x % blocks_per_cloud * warps + threadIdx.x / WARP;
    const float* cloud_ref = ref + cloud * n * 3;
    const float* own = query + (cloud * m + min(number, m - 1)) * 3;  // warps without a query keep the barriers whole
    float center[3] = {own[0], own[1], own[2]};

    float best[ROWS];
    int index[ROWS];
    for (int row = 0; row < ROWS; ++row) best[row] = EMPTY, index[row] = 0;
    float kth = EMPTY;

    for (int start = 0; start < n; start += TILE) {
        int size = min(TILE, n - start);
        __syncthreads();
        for (int i = threadIdx.x; i < 3 * size; i += blockDim.x) tile[i] = cloud_ref[3LL * start + i];
        __syncthreads();
        for (int first = 0; first < size; first += WARP) {
            int i = first + lane;
            float distance = i < size ? fminf(squared_distance(center, tile + 3 * i), FARTHEST) : EMPTY;
            for (unsigned nearer = __ballot_sync(ALL_LANES, distance < kth); nearer; nearer &= nearer - 1) {
                int source = __ffs(nearer) - 1;
                float candidate = __shfl_sync(ALL_LANES, distance, source);
                if (candidate >= kth) continue;  // the k-th best has come nearer since
                insert(best, index, candidate, start + first + source, lane);
                kth = __shfl_sync(ALL_LANES, best[ROWS - 1], (k - 1) % WARP);
            }
        }
    }
    for (int row = 0; row < ROWS; ++row) {
        int slot = row * WARP + lane;
        if (number >= m || slot >= k) continue;
        long long out = (cloud * m + number) * k + slot;
        indices[out] = index[row];
        distances[out] = sqrtf(squared_distance(center, cloud_ref + 3LL * index[row]));  // NaN and infinity show again
    }
}

extern "C" __global__ void __launch_bounds__(256) knn_32(const float* ref, const float* query, float* distances, long long* indices, int n, int m, int k) {
    search<1>(ref, query, distances, indices, n, m, k);
}

extern "C" __global__ void __launch_bounds__(256) knn_64(const float* ref, const float* query, float* distances, long long* indices, int n, int m, int k) {
    search<2>(ref, query, distances, indices, n, m, k);
}
