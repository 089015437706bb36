// Memory held for torch, which terminates the process if it cannot allocate a tensor's own few
// hundred bytes: they are freed for it when `new` fails.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "cpu/memory.h"

namespace bindings {

class Reserve {
 public:
  // Call once, when the module is loaded.
  void hold() {
    refill();
    next = std::set_new_handler(release);
  }

  // Throws OutOfMemory if what was freed cannot be allocated again. Costs a load if nothing was.
  void check() {
    if (block.load(std::memory_order_relaxed) == nullptr && !refill())
      throw emp::OutOfMemory(kBytes);
  }

 private:
  static constexpr int64_t kBytes = 16 * 1024;  // some tens of tensors
  inline static std::atomic<void*> block{nullptr};
  inline static std::new_handler next = nullptr;

  static bool refill() {
    void* const made = std::malloc(kBytes);
    void* none = nullptr;
    if (made != nullptr && !block.compare_exchange_strong(none, made)) std::free(made);
    return made != nullptr;
  }

  // `new` calls this when it fails, and tries again if it returns.
  static void release() {
    if (void* const held = block.exchange(nullptr)) {
      std::free(held);
    } else if (next != nullptr) {
      next();
    } else {
      throw std::bad_alloc();
    }
  }
};
inline Reserve reserve;

}  // namespace bindings
