// A block copies some rows of one tensor. Adjacent threads copy a row, each in the widest units, up
// to 16 bytes, that the tensor's alignment allows.
#include <algorithm>

#include "cuda/gathering.h"

namespace emp {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsAThread = 4;      // loads in flight before the first store
constexpr int kTensorsALaunch = 48;  // as many as fit into a kernel's parameters

struct Part {
  GatherTensor tensor;
  int64_t first_block;
  int unit_log2;   // of the bytes copied at a time
  int lanes_log2;  // of the threads per row
};

struct Batch {
  Part parts[kTensorsALaunch];
  int size;
};

template <class Unit>
__device__ void copy_rows(const Part& part, const int64_t* indices, int64_t count, int64_t block) {
  const int lanes = 1 << part.lanes_log2;
  const int lane = threadIdx.x & (lanes - 1);
  const int64_t rows_a_pass = kThreads >> part.lanes_log2;
  const int64_t first = block * rows_a_pass * kRowsAThread + (threadIdx.x >> part.lanes_log2);
  const int64_t units = part.tensor.row_bytes / int64_t(sizeof(Unit));
  const char* sources[kRowsAThread];
#pragma unroll
  for (int r = 0; r < kRowsAThread; ++r) {
    const int64_t k = first + r * rows_a_pass;
    const int64_t index = k < count ? indices[k] : -1;
    const bool inside = index >= 0 && index < part.tensor.rows;
    sources[r] = inside ? static_cast<const char*>(part.tensor.source) + index * part.tensor.stride
                        : nullptr;
  }
  for (int64_t unit = lane; unit < units; unit += lanes) {
    Unit values[kRowsAThread];
#pragma unroll
    for (int r = 0; r < kRowsAThread; ++r)
      values[r] = sources[r] ? __ldg(reinterpret_cast<const Unit*>(sources[r]) + unit) : Unit{};
#pragma unroll
    for (int r = 0; r < kRowsAThread; ++r) {
      const int64_t k = first + r * rows_a_pass;
      if (k < count) static_cast<Unit*>(part.tensor.out)[k * units + unit] = values[r];
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    gather_kernel(const __grid_constant__ Batch batch, const int64_t* indices, int64_t count) {
  int p = 0;
  while (p + 1 < batch.size && int64_t(blockIdx.x) >= batch.parts[p + 1].first_block) ++p;
  const Part& part = batch.parts[p];
  const int64_t block = int64_t(blockIdx.x) - part.first_block;
  switch (part.unit_log2) {
    case 4:
      return copy_rows<uint4>(part, indices, count, block);
    case 3:
      return copy_rows<uint2>(part, indices, count, block);
    case 2:
      return copy_rows<unsigned>(part, indices, count, block);
    case 1:
      return copy_rows<unsigned short>(part, indices, count, block);
    default:
      return copy_rows<unsigned char>(part, indices, count, block);
  }
}

int log2_of_unit(const GatherTensor& tensor) {
  const uint64_t bits = reinterpret_cast<uint64_t>(tensor.source) |
                        reinterpret_cast<uint64_t>(tensor.out) | uint64_t(tensor.row_bytes) |
                        uint64_t(tensor.stride);
  int unit_log2 = 4;
  while (bits & ((uint64_t(1) << unit_log2) - 1)) --unit_log2;
  return unit_log2;
}

int log2_of_lanes(int64_t units) {
  int lanes_log2 = 0;
  while (lanes_log2 < 8 && (int64_t(1) << lanes_log2) < units) ++lanes_log2;
  return lanes_log2;
}

}  // namespace

const char* gather(const GatherTensor* tensors, int num_tensors, const int64_t* indices,
                   int64_t count, void* stream) {
  for (int start = 0; start < num_tensors; start += kTensorsALaunch) {
    Batch batch{};
    int64_t blocks = 0;
    for (int i = start; i < std::min(num_tensors, start + kTensorsALaunch); ++i) {
      if (tensors[i].row_bytes == 0 || count == 0) continue;
      Part& part = batch.parts[batch.size++];
      part = {tensors[i], blocks, log2_of_unit(tensors[i]), 0};
      part.lanes_log2 = log2_of_lanes(tensors[i].row_bytes >> part.unit_log2);
      const int64_t rows_a_block = int64_t(kThreads >> part.lanes_log2) * kRowsAThread;
      blocks += (count + rows_a_block - 1) / rows_a_block;
    }
    if (blocks == 0) continue;
    gather_kernel<<<unsigned(blocks), kThreads, 0, cudaStream_t(stream)>>>(batch, indices, count);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  return nullptr;
}

}  // namespace emp
