// Threads that wait for work: started on first use, kept for the life of the process.

#pragma once

#include <atomic>
#include <functional>

namespace moesaic {

// What the threads of one run share.
class Team {
 public:
  explicit Team(int threads) : threads_(threads) {}

  int threads() const { return threads_; }

  // Waits until all threads of the team are here.
  void barrier();

 private:
  const int threads_;
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

// Runs work(thread, team) on `threads` threads, the caller among them as thread 0, and returns when all are done. One
// run at a time: callers wait for each other. Idle threads look for new work for some microseconds, then sleep.
// `work` must not throw.
void run_on_threads(int threads, const std::function<void(int, Team&)>& work);

}  // namespace moesaic
