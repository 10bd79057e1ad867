#include "norm.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "pool.h"

namespace moesaic {

constexpr int kNumbersPerTask = 1 << 14;  // a few microseconds: less is not worth another thread

void norm_weight(const Norm& norm, float* out, int count) {
  kernels().to_float(norm.dtype, norm.weight, out, count);
  if (norm.offset != 0) {
    for (int i = 0; i < count; ++i) out[i] += norm.offset;
  }
}

void run_rms_norm(Rows x, int columns, const Norm& norm, void* out, int threads) {
  const std::size_t bytes = (x.dtype == DType::float32 ? 4 : 2) * std::size_t(columns);
  std::vector<float> weight(columns);
  norm_weight(norm, weight.data(), columns);
  const int rows_per_task = std::max(1, kNumbersPerTask / columns);
  const int count = (x.rows + rows_per_task - 1) / rows_per_task;
  Tasks tasks(count);
  run_on_threads(std::min(count, threads), [&](int, Team&) {
    std::vector<float> row(columns);
    for (int task; (task = tasks.next()) >= 0;) {
      for (int t = task * rows_per_task; t < std::min(x.rows, (task + 1) * rows_per_task); ++t) {
        kernels().to_float(x.dtype, static_cast<const std::byte*>(x.data) + bytes * t, row.data(), columns);
        kernels().rms_norm(row.data(), weight.data(), norm.epsilon, row.data(), columns);
        kernels().from_float(x.dtype, row.data(), static_cast<std::byte*>(out) + bytes * t, columns);
      }
    }
  });
}

}  // namespace moesaic
