#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "openmp.h"

namespace moesaic {
namespace {

// Rounds of waiting before a core is given up: longer inside a run, where the others are about to arrive, than between
// runs, where the core may be wanted by somebody else's threads.
constexpr int kSpinsInside = 4000, kSpinsBetween = 1000;

// A run's number and how many threads it has, in one word, so that a thread that it does not need learns so
// without touching anything that may be gone by then.
constexpr std::uint64_t kThreadsMask = 0xFFFF;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Spins, and lets others run when it takes long: there may be more threads than cores.
template <class Condition>
void spin_until(Condition&& condition) {
  for (int spins = 0; !condition(); ++spins) {
    if (spins < kSpinsInside) {
      pause();
    } else {
      sched_yield();
    }
  }
}

class Pool {
 public:
  void run(int threads, const std::function<void(int, Team&)>& work) {
    const std::lock_guard<std::mutex> one_at_a_time(callers_);
    Team team(threads);
    start_workers(threads - 1);
    work_ = &work;
    team_ = &team;
    busy_.store(threads - 1, std::memory_order_relaxed);
    announce(static_cast<std::uint64_t>(threads));
    work(0, team);
    spin_until([&] { return busy_.load(std::memory_order_acquire) == 0; });
  }

 private:
  void start_workers(int count) {
    for (; workers_ < count; ++workers_) {
      std::thread(&Pool::serve, this, workers_ + 1, run_.load(std::memory_order_relaxed)).detach();
    }
  }

  void announce(std::uint64_t threads) {
    {
      const std::lock_guard<std::mutex> lock(sleepers_);
      const std::uint64_t number = run_.load(std::memory_order_relaxed) & ~kThreadsMask;
      run_.store(number + kThreadsMask + 1 + threads, std::memory_order_release);
    }
    wake_.notify_all();
  }

  // A worker's life.
  void serve(int thread, std::uint64_t seen) {
    for (;;) {
      seen = wait_for_other_than(seen);
      if (thread >= static_cast<int>(seen & kThreadsMask)) continue;
      (*work_)(thread, *team_);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::uint64_t wait_for_other_than(std::uint64_t seen) {
    std::uint64_t run = seen;
    const auto changed = [&] { return (run = run_.load(std::memory_order_acquire)) != seen; };
    for (int spins = 0; spins < kSpinsBetween; ++spins) {
      if (changed()) return run;
      pause();
    }
    std::unique_lock<std::mutex> lock(sleepers_);
    wake_.wait(lock, changed);
    return run;
  }

  std::mutex callers_, sleepers_;
  std::condition_variable wake_;
  std::atomic<std::uint64_t> run_{0};
  std::atomic<int> busy_{0};
  const std::function<void(int, Team&)>* work_ = nullptr;
  Team* team_ = nullptr;
  int workers_ = 0;
};

std::atomic<bool> own_only{false};

Pool* current = nullptr;

// Threads do not survive a fork: the child starts a pool of its own. The old one is left alone, its locks may be held.
void forget_pool() { current = nullptr; }

// Never destroyed: workers may be waiting in it while the process ends.
Pool& pool() {
  static std::mutex making;
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  (void)registered;
  const std::lock_guard<std::mutex> lock(making);
  if (!current) current = new Pool;
  return *current;
}

}  // namespace

void Team::barrier() {
  const int round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_.load(std::memory_order_relaxed)) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
}

void run_on_threads(int threads, const std::function<void(int, Team&)>& work) {
  if (threads == 1) {
    Team alone(1);
    return work(0, alone);
  }
  if (!own_only && run_on_openmp(threads, work)) return;
  pool().run(threads, work);
}

void use_own_threads(bool own) { own_only = own; }

}  // namespace moesaic
