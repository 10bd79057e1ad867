#include "openmp.h"

#include <algorithm>
#include <atomic>
#include <type_traits>

#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace moesaic {
namespace {

// What is called of the runtime. GNU's has these names, and so have LLVM's and Intel's for programs compiled with GCC.
struct Runtime {
  void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags) = nullptr;
  int (*thread_number)() = nullptr;
  int (*team_size)() = nullptr;
  int (*most_threads)() = nullptr;
  int (*is_inside)() = nullptr;

  explicit operator bool() const { return parallel && thread_number && team_size && most_threads && is_inside; }
};

std::atomic<bool> forked{false};

// Looked up from torch's library on, since a process may hold several runtimes.
Runtime find_runtime() {
  Runtime found;
#if defined(__linux__)
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  if (void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD)) {
    const auto look_up = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(torch, name));
    };
    look_up(found.parallel, "GOMP_parallel");
    look_up(found.thread_number, "omp_get_thread_num");
    look_up(found.team_size, "omp_get_num_threads");
    look_up(found.most_threads, "omp_get_max_threads");
    look_up(found.is_inside, "omp_in_parallel");
  }
#endif
  return found;
}

const Runtime& runtime() {
  static const Runtime found = find_runtime();
  return found;
}

// What the threads of one run get.
struct Region {
  const Runtime& openmp;
  Team team;
  int threads;
  const std::function<void(int, Team&)>& work;
};

void take_part(void* data) {
  Region& region = *static_cast<Region*>(data);
  // The runtime may give fewer than were asked for; all see the same number.
  const int size = std::min(region.threads, region.openmp.team_size()), thread = region.openmp.thread_number();
  if (thread >= size) return;
  region.team.resize(size);
  region.work(thread, region.team);
}

}  // namespace

bool run_on_openmp(int threads, const std::function<void(int, Team&)>& work) {
  const Runtime& openmp = runtime();
  if (!openmp || forked || openmp.is_inside()) return false;
  // Always all of them: a team of another size than the last one ends threads and starts new ones.
  const int all = openmp.most_threads();
  if (all < threads) return false;
  Region region{openmp, Team(threads), threads, work};
  openmp.parallel(take_part, &region, static_cast<unsigned>(all), 0);
  return true;
}

}  // namespace moesaic
