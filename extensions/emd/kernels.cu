// Approximate earth mover's distance: rounds of a soft matching whose weights exp(λ d²) are computed again where needed.
// LANES threads share a point and go through the other cloud, a tile of it in shared memory at a time.
// Grid (clouds, ceil(points / POINTS)), blocks of POINTS * LANES threads. No atomics: the same input, the same bits.

static const int LANES = 8, POINTS = 32, TILE = POINTS * LANES, ROUNDS = 10;

// λ of a round: -4^7, ..., -4^-1, 0.
static __device__ __forceinline__ float rate_of(int round) {
    return round == ROUNDS - 1 ? 0.0f : -16384.0f / (float)(1 << 2 * round);
}

static __device__ __forceinline__ float squared_distance(float x, float y, float z) { return (x * x + y * y) + z * z; }

// The sum over the LANES threads of a point, for all of them.
static __device__ __forceinline__ float sum_of_lanes(float value) {
    for (int step = LANES / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// Per point k of xyz1: take what the round before moved off its supply and add what that cost, then
// r_k = supply_k / (1e-9 + sum_l w_kl demand_l) for this round. Rounds 0 ... ROUNDS; the last only settles.
extern "C" __global__ void __launch_bounds__(256) emd_give(const float* xyz1, const float* xyz2, const float* demand, const float* t, float* supply, float* cost, float* r, int round, int n, int m) {
    __shared__ float tile_x[TILE], tile_y[TILE], tile_z[TILE], tile_demand[TILE], tile_t[TILE];
    const bool settle = round > 0, give = round < ROUNDS;
    const float rate_before = settle ? rate_of(round - 1) : 0.0f, rate = give ? rate_of(round) : 0.0f;
    const long long cloud = blockIdx.x;
    const int k = blockIdx.y * POINTS + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const float* point = xyz1 + (cloud * n + min(k, n - 1)) * 3;
    const float x = point[0], y = point[1], z = point[2];

    float wanted = 0.0f, moved = 0.0f, paid = 0.0f;
    for (int first = 0; first < m; first += TILE) {
        const int l = first + threadIdx.x, count = min(TILE, m - first);
        __syncthreads();
        if (l < m) {
            const float* other = xyz2 + (cloud * m + l) * 3;
            tile_x[threadIdx.x] = other[0];
            tile_y[threadIdx.x] = other[1];
            tile_z[threadIdx.x] = other[2];
            tile_demand[threadIdx.x] = demand[cloud * m + l];
            tile_t[threadIdx.x] = settle ? t[(cloud * ROUNDS + round - 1) * m + l] : 0.0f;
        }
        __syncthreads();
        for (int i = lane; i < count; i += LANES) {
            const float squared = squared_distance(x - tile_x[i], y - tile_y[i], z - tile_z[i]);
            const float taken = expf(rate_before * squared) * tile_t[i];
            wanted += expf(rate * squared) * tile_demand[i];
            moved += taken;
            paid += taken * squared;
        }
    }
    wanted = sum_of_lanes(wanted);
    moved = sum_of_lanes(moved);
    paid = sum_of_lanes(paid);
    if (lane != 0 || k >= n) return;

    float left = supply[cloud * n + k];
    if (settle) {
        const float r_before = r[(cloud * ROUNDS + round - 1) * n + k];
        left = fmaxf(0.0f, left - r_before * moved);
        supply[cloud * n + k] = left;
        cost[cloud * n + k] += r_before * paid;
    }
    if (give) r[(cloud * ROUNDS + round) * n + k] = left / (1e-9f + wanted);
}

// Per point l of xyz2: s = demand_l sum_k w_kl r_k is offered, t_l = demand_l min(1, demand_l / (s + 1e-9)) scales it down
// to what fits, and demand_l falls by s.
extern "C" __global__ void __launch_bounds__(256) emd_take(const float* xyz1, const float* xyz2, const float* r, float* demand, float* t, int round, int n, int m) {
    __shared__ float tile_x[TILE], tile_y[TILE], tile_z[TILE], tile_r[TILE];
    const float rate = rate_of(round);
    const long long cloud = blockIdx.x;
    const int l = blockIdx.y * POINTS + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const float* point = xyz2 + (cloud * m + min(l, m - 1)) * 3;
    const float x = point[0], y = point[1], z = point[2];

    float offered = 0.0f;
    for (int first = 0; first < n; first += TILE) {
        const int k = first + threadIdx.x, count = min(TILE, n - first);
        __syncthreads();
        if (k < n) {
            const float* other = xyz1 + (cloud * n + k) * 3;
            tile_x[threadIdx.x] = other[0];
            tile_y[threadIdx.x] = other[1];
            tile_z[threadIdx.x] = other[2];
            tile_r[threadIdx.x] = r[(cloud * ROUNDS + round) * n + k];
        }
        __syncthreads();
        for (int i = lane; i < count; i += LANES) {
            const float squared = squared_distance(x - tile_x[i], y - tile_y[i], z - tile_z[i]);
            offered += expf(rate * squared) * tile_r[i];
        }
    }
    offered = sum_of_lanes(offered);
    if (lane != 0 || l >= m) return;

    const float wanted = demand[cloud * m + l];
    offered *= wanted;
    t[(cloud * ROUNDS + round) * m + l] = wanted * fminf(1.0f, wanted / (offered + 1e-9f));
    demand[cloud * m + l] = fmaxf(0.0f, wanted - offered);
}

// Per point k of xyz1: 2 grad_cost sum_l match_kl (x_k - y_l), with match_kl = sum_j exp(λ_j d²_kl) r_kj t_lj.
extern "C" __global__ void __launch_bounds__(256) emd_gradient(const float* xyz1, const float* xyz2, const float* r, const float* t, const float* grad_cost, float* gradient, int n, int m) {
    __shared__ float tile_x[TILE], tile_y[TILE], tile_z[TILE], tile_t[ROUNDS][TILE];
    const long long cloud = blockIdx.x;
    const int k = blockIdx.y * POINTS + threadIdx.x / LANES, own = min(k, n - 1), lane = threadIdx.x % LANES;
    const float* point = xyz1 + (cloud * n + own) * 3;
    const float x = point[0], y = point[1], z = point[2];
    float own_r[ROUNDS];
#pragma unroll
    for (int j = 0; j < ROUNDS; ++j) own_r[j] = r[(cloud * ROUNDS + j) * n + own];

    float sum_x = 0.0f, sum_y = 0.0f, sum_z = 0.0f;
    for (int first = 0; first < m; first += TILE) {
        const int l = first + threadIdx.x, count = min(TILE, m - first);
        __syncthreads();
        if (l < m) {
            const float* other = xyz2 + (cloud * m + l) * 3;
            tile_x[threadIdx.x] = other[0];
            tile_y[threadIdx.x] = other[1];
            tile_z[threadIdx.x] = other[2];
            for (int j = 0; j < ROUNDS; ++j) tile_t[j][threadIdx.x] = t[(cloud * ROUNDS + j) * m + l];
        }
        __syncthreads();
        for (int i = lane; i < count; i += LANES) {
            const float dx = x - tile_x[i], dy = y - tile_y[i], dz = z - tile_z[i];
            const float squared = squared_distance(dx, dy, dz);
            float match = 0.0f;
#pragma unroll
            for (int j = 0; j < ROUNDS; ++j) match += expf(rate_of(j) * squared) * own_r[j] * tile_t[j][i];
            sum_x += match * dx;
            sum_y += match * dy;
            sum_z += match * dz;
        }
    }
    sum_x = sum_of_lanes(sum_x);
    sum_y = sum_of_lanes(sum_y);
    sum_z = sum_of_lanes(sum_z);
    if (lane != 0 || k >= n) return;

    const float scale = 2.0f * grad_cost[cloud];
    float* result = gradient + (cloud * n + k) * 3;
    result[0] = scale * sum_x;
    result[1] = scale * sum_y;
    result[2] = scale * sum_z;
}
