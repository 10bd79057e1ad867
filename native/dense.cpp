#include "dense.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "pool.h"

namespace moesaic {

constexpr int kRowsPerTask = 32;  // of weights

void run_dense(const std::uint16_t* weights, int count, int columns, Rows x, void* out, int threads) {
  const std::size_t bytes = x.dtype == DType::float32 ? 4 : 2;
  std::vector<float> wide(std::size_t(x.rows) * columns);
  for (int t = 0; t < x.rows; ++t) {
    const auto* row = static_cast<const std::byte*>(x.data) + bytes * t * columns;
    kernels().to_float(x.dtype, row, wide.data() + std::size_t(t) * columns, columns);
  }
  const int count_of_tasks = (count + kRowsPerTask - 1) / kRowsPerTask;
  Tasks tasks(count_of_tasks);
  run_on_threads(std::min(count_of_tasks, threads), [&](int, Team&) {
    std::vector<float> found(std::size_t(x.rows) * kRowsPerTask);
    for (int task; (task = tasks.next()) >= 0;) {
      const int first = task * kRowsPerTask, rows = std::min(kRowsPerTask, count - first);
      kernels().dense(weights + std::size_t(first) * columns, columns, rows, wide.data(), x.rows, found.data());
      for (int t = 0; t < x.rows; ++t) {
        auto* to = static_cast<std::byte*>(out) + bytes * (std::size_t(t) * count + first);
        kernels().from_float(x.dtype, found.data() + std::size_t(t) * rows, to, rows);
      }
    }
  });
}

}  // namespace moesaic
