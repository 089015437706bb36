// Threads: each task runs once, exceptions reach the caller, one thread inside parallel regions and
// in a forked process.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cases.h"
#include "cpu/scoring.h"
#include "cpu/threads.h"

// A fake runtime that records how many threads were requested.
namespace {
std::atomic<unsigned> asked{0};
thread_local int own_number = 0;
}  // namespace
extern "C" {
[[gnu::visibility("default")]] void GOMP_parallel(void (*work)(void*), void* data, unsigned threads,
                                                  unsigned) {
  asked += threads;
  std::vector<std::thread> team;
  for (unsigned number = 0; number < threads; ++number)
    team.emplace_back([=] {
      own_number = int(number);
      work(data);
    });
  for (std::thread& member : team) member.join();
}
[[gnu::visibility("default")]] int omp_in_parallel() { return 0; }
[[gnu::visibility("default")]] int omp_get_thread_num() { return own_number; }
}

namespace {

constexpr int64_t kMuch = int64_t(1) << 30;  // bytes: worth any number of threads

void test_each_task_once() {
  for (const int threads : {1, 2, 3, 7}) {
    for (const int64_t tasks : {0, 1, 2, 5, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      std::atomic<bool> known{true};
      emp::parallel_tasks(threads, tasks, [&](int64_t task, int thread) {
        runs[size_t(task)].fetch_add(1);
        if (thread < 0 || thread >= threads) known = false;
      });
      for (const std::atomic<int>& count : runs) check(count == 1, "runs of a task", tasks);
      check(known, "the number of a thread", threads);
    }
  }
}

void test_an_exception_reaches_the_caller() {
  for (const int threads : {1, 3}) {
    bool caught = false;
    try {
      emp::parallel_tasks(threads, 100, [](int64_t task, int) {
        if (task % 40 == 39) throw std::runtime_error("a task's");
      });
    } catch (const std::runtime_error& error) {
      caught = std::strcmp(error.what(), "a task's") == 0;
    }
    check(caught, "the exception of a task", threads);
  }
}

void test_useful_threads() {
  check(emp::useful_threads(4, kMuch) == 4, "threads for much", 4);
  check(emp::useful_threads(4, 1000) == 1, "threads for little", 1000);
#if !defined(__SANITIZE_THREAD__)  // whose threads are not OpenMP's
  std::atomic<int> most{0};
  emp::parallel_tasks(2, 2, [&](int64_t, int) {
    const int inside = emp::useful_threads(4, kMuch);
    if (inside > most) most = inside;
  });
  check(most == 1, "threads inside others", most);
#endif
}

// After a fork OpenMP's threads are gone: the child works with one thread, with the same results.
void test_a_forked_process() {
#if !defined(__SANITIZE_THREAD__)  // which does not support forking from many threads
  const int64_t rows = 4000, classes = 64;
  const auto z = exactly<float>(rows * classes), out = exactly<float>(8 * rows);
  const auto labels = exactly<int32_t>(rows);
  for (int64_t i = 0; i < rows * classes; ++i) z[i] = float(i * 37 % 101) / 9;
  const auto score = [&](float* to) {
    emp::score({z.get(), emp::LogitDtype::kFloat32, rows, classes, rows, 0, classes},
               {labels.get(), emp::IntDtype::kInt32, false, 0}, 1.0f,
               {to, to + rows, to + 2 * rows, to + 3 * rows}, 4);
  };
  score(&out[0]);
  check(!emp::forked(), "no fork yet", 0);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // waiting for missing threads would never end
    score(&out[4 * rows]);
    const bool alone = emp::forked() && emp::useful_threads(4, kMuch) == 1;
    const bool same = std::memcmp(&out[0], &out[4 * rows], size_t(4 * rows) * sizeof(float)) == 0;
    _exit(alone && same ? EXIT_SUCCESS : EXIT_FAILURE);
  }
  int status = -1;
  check(child > 0 && waitpid(child, &status, 0) == child, "a child", child);
  check(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS, "scores of a child", status);
  check(!emp::forked(), "the parent", 0);
#endif
}

// Threads come from the shared runtime, whatever its file name.
void test_a_shared_runtime() {
  check(!emp::share_openmp_of("libnone.so.1"), "a library that is not loaded", 0);
#if !defined(__SANITIZE_THREAD__)
  check(asked == 0, "the system's runtime before", asked);
  check(emp::share_openmp_of(nullptr), "the program's runtime", 0);
  test_each_task_once();
  check(asked > 0, "threads of the shared runtime", asked);
#endif
}

}  // namespace

int main() {
  test_each_task_once();
  test_an_exception_reaches_the_caller();
  test_useful_threads();
  test_a_forked_process();
  test_a_shared_runtime();
  return report("workers");
}
