// Radix selection over order-preserving keys: three histograms, from the leading digit down, find
// the k-th key; one pass finds the last of its ties that is taken; cub::DeviceSelect compacts.
// Blocks synchronise only by tickets: the last block to finish a pass prepares the next one.
#include <thrust/iterator/counting_iterator.h>

#include <algorithm>
#include <cub/block/block_scan.cuh>
#include <cub/device/device_select.cuh>

#include "cuda/selection.h"

namespace emp {
namespace {

constexpr int kThreads = 512;
constexpr int kBins = 2048;
constexpr int kDigits = 3;
constexpr int kShifts[kDigits] = {21, 10, 0};  // of digits of 11, 11 and 10 bits
constexpr int kChunk = 8192;                   // scores per block and step
constexpr int kBlocks = 2048;                  // at most, for passes in any order

using Count = unsigned long long;
using Scan = cub::BlockScan<int64_t, kThreads>;

// State passed between the passes; initially zero except `wanted`.
struct Plan {
  Count histogram[kDigits][kBins];
  int64_t wanted;    // the k-th key is the wanted-th largest of those that share its prefix
  int64_t last_tie;  // position of the last tie that is taken
  int64_t selected;
  uint32_t prefix;  // the k-th key's digits found so far
  unsigned tickets[kDigits + 1];
};

__device__ uint32_t key_of(float score) {
  if (isnan(score)) return 0;
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0.0 + 0.0 is +0.0
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// True in every thread of the last block to arrive, which then sees the writes of all blocks.
__device__ bool comes_last(unsigned* ticket) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  return last;
}

__global__ void begin(Plan* plan, int64_t count) { plan->wanted = count; }

// Histogram of one digit of the keys with the prefix; the last block finds the k-th key's digit.
template <int digit>
__global__ void __launch_bounds__(kThreads)
    histogram_kernel(const float* scores, int64_t n, Plan* plan) {
  __shared__ unsigned bins[kBins];
  __shared__ typename Scan::TempStorage storage;
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) bins[bin] = 0;
  __syncthreads();
  constexpr int shift = kShifts[digit];
  constexpr int above = digit == 0 ? 0 : kShifts[digit > 0 ? digit - 1 : 0];
  const uint32_t prefix = plan->prefix;
  const int64_t step = int64_t(gridDim.x) * kThreads;
#pragma unroll 8
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    const uint32_t key = key_of(__ldg(scores + i));
    if (digit == 0 || key >> above == prefix >> above)
      atomicAdd(&bins[(key >> shift) & (kBins - 1) & (digit == 2 ? 1023 : 2047)], 1u);
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads)
    if (bins[bin]) atomicAdd(&plan->histogram[digit][bin], Count(bins[bin]));
  if (!comes_last(&plan->tickets[digit])) return;

  // The bin, from the highest down and a few per thread, in which the running sum reaches `wanted`.
  constexpr int kBinsAThread = kBins / kThreads;
  const int top = kBins - 1 - int(threadIdx.x) * kBinsAThread;
  const int64_t wanted = plan->wanted;
  int64_t sum = 0, before;
  for (int j = 0; j < kBinsAThread; ++j) sum += int64_t(plan->histogram[digit][top - j]);
  Scan(storage).ExclusiveSum(sum, before);
  for (int j = 0; j < kBinsAThread; ++j) {
    const int64_t here = int64_t(plan->histogram[digit][top - j]);
    if (before < wanted && wanted <= before + here) {
      plan->wanted = wanted - before;
      plan->prefix = prefix | uint32_t(top - j) << shift;
    }
    before += here;
  }
}

// Counts each chunk's ties; the last block finds the position of the `wanted`-th tie.
__global__ void __launch_bounds__(kThreads)
    ties_kernel(const float* scores, int64_t n, Plan* plan, unsigned* ties) {
  __shared__ typename Scan::TempStorage storage;
  __shared__ unsigned held;
  __shared__ int64_t chunk, before_chunk;
  const uint32_t kth = plan->prefix;
  const int64_t start = int64_t(blockIdx.x) * kChunk;
  if (threadIdx.x == 0) held = 0;
  __syncthreads();
  unsigned mine = 0;
#pragma unroll 8
  for (int j = threadIdx.x; j < kChunk; j += kThreads)
    if (start + j < n) mine += key_of(__ldg(scores + start + j)) == kth;
  if (mine) atomicAdd(&held, mine);
  __syncthreads();
  if (threadIdx.x == 0) ties[blockIdx.x] = held;
  if (!comes_last(&plan->tickets[kDigits])) return;

  const int64_t wanted = plan->wanted;
  int64_t sum = 0, total;  // of earlier chunks
  for (int64_t first = 0; first < gridDim.x && sum < wanted; first += kThreads) {
    const int64_t c = first + threadIdx.x;
    const int64_t here = c < gridDim.x ? int64_t(ties[c]) : 0;
    int64_t before;
    Scan(storage).ExclusiveSum(here, before, total);
    if (sum + before < wanted && wanted <= sum + before + here) {
      chunk = c;
      before_chunk = sum + before;
    }
    sum += total;
    __syncthreads();
  }
  sum = before_chunk;
  const int64_t end = min(n, (chunk + 1) * kChunk);
  for (int64_t first = chunk * kChunk; first < end && sum < wanted; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const int64_t here = i < end && key_of(scores[i]) == kth;
    int64_t before;
    Scan(storage).ExclusiveSum(here, before, total);
    if (here && sum + before + 1 == wanted) plan->last_tie = i;
    sum += total;
    __syncthreads();
  }
}

struct Chosen {
  const float* scores;
  const Plan* plan;

  __device__ bool operator()(int64_t i) const {
    const uint32_t key = key_of(scores[i]), kth = plan->prefix;
    return key > kth || (key == kth && i <= plan->last_tie);
  }
};

cudaError_t compact(void* storage, size_t& bytes, const float* scores, const Plan* plan,
                    int64_t* indices, int64_t* selected, int64_t n, cudaStream_t stream) {
  return cub::DeviceSelect::If(storage, bytes, thrust::counting_iterator<int64_t>(0), indices,
                               selected, n, Chosen{scores, plan}, stream);
}

constexpr size_t align(size_t bytes) { return (bytes + 255) & ~size_t(255); }

int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

const char* message_of(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* select_workspace(int64_t n, size_t* bytes) {
  size_t storage = 0;
  const cudaError_t error =
      compact(nullptr, storage, nullptr, nullptr, nullptr, nullptr, n, cudaStream_t{});
  *bytes = align(sizeof(Plan)) + align(size_t(chunks_of(n)) * sizeof(unsigned)) + align(storage);
  return message_of(error);
}

const char* select(const float* scores, int64_t n, int64_t count, int64_t* indices, void* workspace,
                   size_t workspace_bytes, void* cuda_stream) {
  const cudaStream_t stream = cudaStream_t(cuda_stream);
  char* memory = static_cast<char*>(workspace);
  Plan* plan = reinterpret_cast<Plan*>(memory);
  const int64_t chunks = chunks_of(n);
  unsigned* ties = reinterpret_cast<unsigned*>(memory + align(sizeof(Plan)));
  const size_t used = align(sizeof(Plan)) + align(size_t(chunks) * sizeof(unsigned));
  size_t storage = workspace_bytes - used;

  cudaError_t error = cudaMemsetAsync(plan, 0, sizeof(Plan), stream);
  if (error != cudaSuccess) return message_of(error);
  begin<<<1, 1, 0, stream>>>(plan, count);
  const unsigned blocks = unsigned(std::min<int64_t>(kBlocks, chunks));
  histogram_kernel<0><<<blocks, kThreads, 0, stream>>>(scores, n, plan);
  histogram_kernel<1><<<blocks, kThreads, 0, stream>>>(scores, n, plan);
  histogram_kernel<2><<<blocks, kThreads, 0, stream>>>(scores, n, plan);
  ties_kernel<<<unsigned(chunks), kThreads, 0, stream>>>(scores, n, plan, ties);
  error = cudaGetLastError();
  if (error != cudaSuccess) return message_of(error);
  return message_of(
      compact(memory + used, storage, scores, plan, indices, &plan->selected, n, stream));
}

}  // namespace emp
