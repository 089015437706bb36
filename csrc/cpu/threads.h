// Worker threads: torch's own OpenMP pool, used only if the work outweighs waking it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#include "floats.h"
#include "memory.h"
#if defined(__SANITIZE_THREAD__)
#include <thread>
#include <vector>
#endif

namespace emp {

// Functions of the process's OpenMP runtime, or null. They are looked up rather than linked: the
// runtime that torch has loaded may have any file name, and a second one would be a second thread
// pool.
struct OpenMP {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  int (*in_parallel)();
  int (*thread_num)();
};
// The shared runtime, else the system's libgomp.
const OpenMP& openmp();
// Use the runtime of a loaded library or of its dependencies from now on; null: the program's.
// Returns false, without effect, if there is none.
bool share_openmp_of(const char* library);

// True in a process forked from one that had loaded this library: OpenMP's pool does not survive
// a fork, and waiting for it would hang.
bool forked();
// Sets it, for forks that came before the library was loaded.
void mark_forked();

constexpr int64_t kBytesPerThread = 128 * 1024;  // about 10 us of reading, twice a wake-up

// Number of threads, at most `limit`, for work that touches `bytes` bytes.
inline int useful_threads(int limit, int64_t bytes) {
  if (limit <= 1 || bytes < 2 * kBytesPerThread || forked()) return 1;
  const OpenMP& runtime = openmp();
  if (runtime.parallel == nullptr || runtime.in_parallel()) return 1;
  return int(std::min<int64_t>(limit, bytes / kBytesPerThread));
}

// Calls body(task, thread) for every task in [0, tasks). Each thread first takes the tasks of its
// own share, in order: thread t the t-th of equal shares, as in torch's own loops, so that data a
// core wrote or read before is still in its caches. Then it helps the others. All compute with
// StandardFloats. The first exception that a task throws ends the tasks and is rethrown to the
// caller.
template <class Body>
void parallel_tasks(int threads, int64_t tasks, Body&& body) {
  threads = int(std::min<int64_t>(threads, tasks));
  if (threads <= 1) {
    const StandardFloats mode;
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const std::unique_ptr<Share[]> shares = allocate<Share>(threads);
  for (int t = 0; t < threads; ++t) {
    shares[t].next = tasks * t / threads;
    shares[t].end = tasks * (t + 1) / threads;
  }
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
  const auto work = [&](int thread) {
    const StandardFloats mode;
    try {
      for (int t = thread; t < thread + threads; ++t) {
        Share& share = shares[t % threads];
        for (int64_t task; (task = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;)
          if (!failed.load(std::memory_order_relaxed)) body(task, thread);
      }
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  };
#if defined(__SANITIZE_THREAD__)  // it does not see the barriers of an uninstrumented libgomp
  std::vector<std::thread> team;
  for (int thread = 0; thread < threads; ++thread) team.emplace_back(work, thread);
  for (std::thread& member : team) member.join();
#else
  const OpenMP& runtime = openmp();
  if (runtime.parallel == nullptr)
    work(0);
  else
    runtime.parallel(
        [](void* data) { (*static_cast<decltype(&work)>(data))(openmp().thread_num()); },
        const_cast<void*>(static_cast<const void*>(&work)), unsigned(threads), 0);
#endif
  if (failure) std::rethrow_exception(failure);
}

}  // namespace emp
