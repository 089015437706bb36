#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>

namespace emp {
namespace {

bool is_forked_child = false;

// Registered when the library is loaded, before it starts any thread.
const int registered = pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });

std::atomic<const OpenMP*> shared{nullptr};

// All null unless the library has all of them.
OpenMP openmp_of(void* library) {
  OpenMP found{};
  if (library == nullptr) return found;
  void* const parallel = dlsym(library, "GOMP_parallel");
  void* const in_parallel = dlsym(library, "omp_in_parallel");
  void* const thread_num = dlsym(library, "omp_get_thread_num");
  if (parallel == nullptr || in_parallel == nullptr || thread_num == nullptr) return found;
  found.parallel = reinterpret_cast<decltype(found.parallel)>(parallel);
  found.in_parallel = reinterpret_cast<decltype(found.in_parallel)>(in_parallel);
  found.thread_num = reinterpret_cast<decltype(found.thread_num)>(thread_num);
  return found;
}

}  // namespace

const OpenMP& openmp() {
  if (const OpenMP* runtime = shared.load(std::memory_order_acquire)) return *runtime;
  static const OpenMP system = openmp_of(dlopen("libgomp.so.1", RTLD_LAZY));
  return system;
}

bool share_openmp_of(const char* library) {
  const OpenMP found = openmp_of(dlopen(library, RTLD_LAZY | RTLD_NOLOAD));
  if (found.parallel == nullptr) return false;
  shared.store(new OpenMP(found), std::memory_order_release);  // never freed
  return true;
}

bool forked() { return is_forked_child; }
void mark_forked() { is_forked_child = true; }

}  // namespace emp
