// The parts of DLPack in use: structures with a stable ABI, so that building does not need torch.
#pragma once

#include <cstdint>

namespace bindings::dlpack {

struct Device {
  int32_t type, id;
};
constexpr Device kCpu{1, 0};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
enum Code : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kComplex = 5, kBool = 6 };

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

struct Version {
  uint32_t major, minor;
};
struct VersionedTensor {
  Version version;
  void* context;
  void (*deleter)(VersionedTensor*);
  uint64_t flags;
  Tensor tensor;
};

// torch.Tensor.__dlpack_c_exchange_api__. Both functions return 0, or set a Python error.
struct ExchangeApi {
  Version version;
  const ExchangeApi* previous;
  void *allocate, *from_object;
  int (*to_object)(VersionedTensor*, void** object);
  int (*view)(void* object, Tensor* out);
  void* current_stream;
};

constexpr const char* kCapsule = "dltensor";

}  // namespace bindings::dlpack
