#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "pool.h"
#include "prepared.h"

namespace moesaic {
namespace {

constexpr int kKeysPerTask = 256;
constexpr double kProductsPerThread = 200e3;

std::size_t item_bytes(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// Scratch of the thread that calls, and of each that works; they keep their pages from call to call.
Buffer& scratch() {
  thread_local Buffer only;
  return only;
}

float* scratch_of_thread(int floats) {
  thread_local Buffer only;
  return only.floats(floats);
}

// ---------------------------------------------------------------------------------------------------------------------
// rotation

struct Turn {
  const float *cosines, *sines;
  int rotated;

  void operator()(float* x) const {
    const int half = rotated / 2;
    for (int i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      x[i] = a * cosines[i] - b * sines[i];
      x[i + half] = b * cosines[i + half] + a * sines[i + half];
    }
  }
};

// The heads of one row.
void rotate_heads(DType dtype, std::byte* heads, int count, int size, const Norm& norm, const float* weight,
                  const Turn& turn, float* head) {
  for (int h = 0; h < count; ++h) {
    std::byte* at = heads + item_bytes(dtype) * size * h;
    kernels().to_float(dtype, at, head, size);
    if (norm.weight) kernels().rms_norm(head, weight, norm.epsilon, head, size);
    turn(head);
    kernels().from_float(dtype, head, at, size);
  }
}

}  // namespace

void run_rotate(DType dtype, int rows, void* queries, int heads, void* keys, int shared, const Rotation& rotation) {
  const int size = rotation.size, rotated = rotation.rotated;
  float* weights[2];
  float* memory = scratch().floats(3 * std::size_t(size) + 2 * std::size_t(rotated));
  float *head = memory + 2 * size, *cosines = head + size, *sines = cosines + rotated;
  const Norm* norms[] = {&rotation.query_norm, &rotation.key_norm};
  for (int i = 0; i < 2; ++i) {
    weights[i] = memory + std::size_t(i) * size;
    if (norms[i]->weight) norm_weight(*norms[i], weights[i], size);
  }
  for (int row = 0; row < rows; ++row) {
    const std::size_t at = item_bytes(dtype) * row, of_tables = rotation.is_common ? 0 : at * rotated;
    kernels().to_float(dtype, static_cast<const std::byte*>(rotation.cosines) + of_tables, cosines, rotated);
    kernels().to_float(dtype, static_cast<const std::byte*>(rotation.sines) + of_tables, sines, rotated);
    const Turn turn{cosines, sines, rotated};
    rotate_heads(dtype, static_cast<std::byte*>(queries) + at * heads * size, heads, size, *norms[0], weights[0], turn, head);
    rotate_heads(dtype, static_cast<std::byte*>(keys) + at * shared * size, shared, size, *norms[1], weights[1], turn, head);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// attention

namespace {

// What the tasks of one call find: one for every row, shared head and piece of the keys.
class Pieces {
 public:
  explicit Pieces(const Attention& a)
      : a_(a),
        group_(a.heads / a.shared),
        pieces_((a.keys.count + kKeysPerTask - 1) / kKeysPerTask),
        count_(a.rows * a.shared * pieces_) {
    const std::size_t queries = std::size_t(a.rows) * a.heads * a.keys.size, found = std::size_t(count_) * group_;
    queries_ = scratch().floats(queries + found * (a.keys.value_size + 2));
    values_ = queries_ + queries;
    tops_ = values_ + found * a.keys.value_size;
    sums_ = tops_ + found;
    kernels().to_float(a.keys.dtype, a.queries, queries_, static_cast<int>(queries));
  }

  int count() const { return count_; }

  // Floats that `attend` wants.
  int scratch_size() const { return kKeysAtATime * (a_.keys.size + a_.keys.value_size); }

  void attend(int task, float* scratch) {
    const int head = task / pieces_, first = task % pieces_ * kKeysPerTask;  // head: among the shared of all rows
    Keys keys = a_.keys;
    const int row = head / a_.shared, of_row = head % a_.shared;
    const auto bytes = static_cast<std::ptrdiff_t>(item_bytes(keys.dtype));
    keys.keys = static_cast<const std::byte*>(keys.keys) +
                (row * a_.key_row + of_row * a_.key_head + std::ptrdiff_t{first} * keys.size) * bytes;
    keys.values = static_cast<const std::byte*>(keys.values) +
                  (row * a_.value_row + of_row * a_.value_head + std::ptrdiff_t{first} * keys.value_size) * bytes;
    if (keys.seen) keys.seen += std::size_t(row) * keys.count + first;
    keys.count = std::min(kKeysPerTask, keys.count - first);
    kernels().attend(queries_ + std::size_t(head) * group_ * keys.size, group_, keys, found(task), scratch);
  }

  // The pieces of query head number `head` among those of all rows, put together.
  void put_together(int head, float* result, void* out) const {
    const int size = a_.keys.value_size, first = head / group_ * pieces_, query = head % group_;
    float top = -std::numeric_limits<float>::infinity(), sum = 0;
    for (int i = 0; i < pieces_; ++i) {
      const float of_piece = found(first + i).tops[query];
      if (of_piece > top || std::isnan(of_piece)) top = of_piece;
    }
    std::fill_n(result, size, 0.0f);
    for (int i = 0; i < pieces_; ++i) {
      const Attended piece = found(first + i);
      if (piece.sums[query] == 0) continue;  // no key seen
      const float share = std::exp(piece.tops[query] - top);
      const float* values = piece.values + std::size_t(query) * size;
      for (int k = 0; k < size; ++k) result[k] += share * values[k];
      sum += share * piece.sums[query];
    }
    const float factor = sum == 0 ? 0 : 1 / sum;
    for (int k = 0; k < size; ++k) result[k] *= factor;
    const std::size_t at = std::size_t(head) * size * item_bytes(a_.keys.dtype);
    kernels().from_float(a_.keys.dtype, result, static_cast<std::byte*>(out) + at, size);
  }

 private:
  Attended found(int task) const {
    const std::size_t at = std::size_t(task) * group_;
    return {values_ + at * a_.keys.value_size, tops_ + at, sums_ + at};
  }

  const Attention& a_;
  int group_, pieces_, count_;
  float *queries_, *values_, *tops_, *sums_;
};

}  // namespace

void run_attend(const Attention& a, void* out, int threads) {
  Pieces pieces(a);
  const double products = double(a.rows) * a.heads * a.keys.count * (a.keys.size + a.keys.value_size);
  const int worth_while = 1 + static_cast<int>(std::min(products / kProductsPerThread, 1e6));
  Tasks tasks(pieces.count()), heads(a.rows * a.heads);
  run_on_threads(std::max(1, std::min({threads, pieces.count(), worth_while})), [&](int, Team& team) {
    float* own = scratch_of_thread(pieces.scratch_size());
    for (int task; (task = tasks.next()) >= 0;) pieces.attend(task, own);
    team.barrier();
    for (int head; (head = heads.next()) >= 0;) pieces.put_together(head, own, out);
  });
}

}  // namespace moesaic
