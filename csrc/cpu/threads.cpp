#include "threads.h"

#include <pthread.h>

namespace emp {
namespace {

bool is_forked_child = false;

// Registered when the library is loaded, before any thread of ours exists.
const int registered = pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });

}  // namespace

bool forked() { return is_forked_child; }
void mark_forked() { is_forked_child = true; }

}  // namespace emp
