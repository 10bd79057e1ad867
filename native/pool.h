// Work on several threads: on those of torch's OpenMP runtime where there are any (openmp.h), else on threads of our
// own, started on first use and kept for the life of the process.

#pragma once

#include <atomic>
#include <functional>

namespace moesaic {

// What the threads of one run share.
class Team {
 public:
  explicit Team(int threads) : threads_(threads) {}

  // Where fewer came than were expected. All threads say so, with the same number, before anything else.
  void resize(int threads) { threads_.store(threads, std::memory_order_relaxed); }

  // Waits until all threads of the team are here.
  void barrier();

 private:
  std::atomic<int> threads_;
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
};

// Tasks 0 .. count - 1, handed out one by one in ascending order.
class Tasks {
 public:
  explicit Tasks(int count) : count_(count) {}

  // The next task, or -1 when there are none left.
  int next() {
    const int task = next_.fetch_add(1, std::memory_order_relaxed);
    return task < count_ ? task : -1;
  }

 private:
  const int count_;
  std::atomic<int> next_{0};
};

// Runs work(thread, team) on `threads` threads, the caller among them as thread 0, and returns when all are done. Our
// own threads do one run at a time, callers wait for each other, and idle ones look for new work for some microseconds
// before they sleep. `work` must not throw.
void run_on_threads(int threads, const std::function<void(int, Team&)>& work);

// Never borrow threads, from now on or until told otherwise; for tests.
void use_own_threads(bool own);

}  // namespace moesaic
