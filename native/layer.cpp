#include "layer.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>

#include "pool.h"
#include "prepared.h"

namespace moesaic {
namespace {

constexpr int kSliceBlocks = 8;       // row blocks of a task: 128 rows, so that a slice of results is whole groups
constexpr int kSliceRows = kSliceBlocks * kBlockRows;
// Row blocks of a task of an expert's second matrix. Every task begins anew with every expert, which small matrices
// feel; with more than a few rows of activations the results of a task have to stay in the cache.
constexpr int kLeastDownBlocks = 4, kMostDownBlocks = 16, kFewRows = 4, kDownTasksPerThread = 4;
constexpr int kMostTaskRows = kMostDownBlocks * kBlockRows;
static_assert(kMostTaskRows >= kSliceRows);
constexpr int kRowsAtATime = 384;     // activation rows of one product: results of a slice stay in the second cache
constexpr double kProductsPerThread = 500e3;  // multiply-adds
constexpr std::size_t kBatchBytes = 48 << 20;  // of hidden activations in int8 or float32 at a time

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

std::size_t item_bytes(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// Adds count elements of a bias, from `first` on, to `rows` rows of results that are `stride` apart.
void add_bias(const Kernels& kernels, Bias bias, std::size_t first, int count, float* results, int rows, int stride) {
  if (!bias.data) return;
  float values[kMostTaskRows];
  kernels.to_float(bias.dtype, static_cast<const std::byte*>(bias.data) + first * item_bytes(bias.dtype), values, count);
  for (int row = 0; row < rows; ++row) {
    for (int n = 0; n < count; ++n) results[std::size_t(row) * stride + n] += values[n];
  }
}

const std::byte* row_of(const Rows& x, int row, int columns) {
  return static_cast<const std::byte*>(x.data) + std::size_t(row) * columns * item_bytes(x.dtype);
}

// One operation at a time uses the buffers; they belong to the process, because mapping fresh pages costs more than many
// a layer.
struct Workspace {
  static constexpr int kMostThreads = 64;
  std::mutex in_use;
  Buffer prepared, hidden, sums;
  Buffer of_thread[kMostThreads][2];
};

Workspace& workspace() {
  static Workspace& only = *new Workspace;  // never destroyed: a thread may still be at work while the process ends
  return only;
}

// Threads for so many tasks and multiply-adds: waking one up costs what it can do in a few microseconds.
int team_size(const Run& run, int tasks, double products) {
  const int worth_while = 1 + static_cast<int>(std::min(products / kProductsPerThread, 1e6));
  return std::max(1, std::min({run.threads, tasks, worth_while, Workspace::kMostThreads}));
}

int slices_of(int rows) { return (rows + kSliceRows - 1) / kSliceRows; }

// Slice number s of a matrix.
struct Slice {
  Slice(const Matrix& m, int s)
      : blocks{s * kSliceBlocks, std::min(m.blocks, (s + 1) * kSliceBlocks)},
        first(s * kSliceRows),
        count(std::min(m.rows - first, kSliceRows)) {}
  Blocks blocks;
  int first, count;  // rows
};

// ---------------------------------------------------------------------------------------------------------------------
// linear

struct LinearJob {
  const Kernels& kernels;
  const std::vector<LinearPart>& parts;
  Rows x;
  Workspace& space;

  const Matrix& like() const { return parts[0].w; }
};

// Activation rows first .. first + count - 1, made ready.
class LinearRows {
 public:
  LinearRows(const LinearJob& job, int first, int count, Rounding rounding)
      : job_(job), first_(first), prepared_(job.kernels, job.like(), count, rounding) {
    prepared_.place(job.space.prepared.reserve(prepared_.bytes()));
    for (const LinearPart& part : job.parts) ends_.push_back(slices() + slices_of(part.w.rows));
  }

  int fill_tasks() const { return prepared_.filled_rows(); }
  int slices() const { return ends_.empty() ? 0 : ends_.back(); }

  void fill(int row, Buffer& scratch) {
    const int columns = job_.like().columns;
    float* values = nullptr;
    if (row < prepared_.rows()) {
      values = scratch.floats(columns);
      job_.kernels.to_float(job_.x.dtype, row_of(job_.x, first_ + row, columns), values, columns);
    }
    prepared_.fill(row, values, 0, columns);
  }

  void multiply(int task, Buffer& scratch) const {
    const auto found = std::upper_bound(ends_.begin(), ends_.end(), task) - ends_.begin();
    const LinearPart& part = job_.parts[found];
    const Slice slice(part.w, task - (found == 0 ? 0 : ends_[found - 1]));
    float* results = scratch.floats(std::size_t(prepared_.filled_rows()) * kSliceRows);
    prepared_.multiply(part.w, slice.blocks, {results, kSliceRows});
    add_bias(job_.kernels, part.bias, slice.first, slice.count, results, prepared_.rows(), kSliceRows);
    for (int row = 0; row < prepared_.rows(); ++row) {
      const float* values = results + std::size_t(row) * kSliceRows;
      const std::size_t at = std::size_t(first_ + row) * part.w.rows + slice.first;
      auto* out = static_cast<std::byte*>(part.out) + at * item_bytes(job_.x.dtype);
      job_.kernels.from_float(job_.x.dtype, values, out, slice.count);
    }
  }

 private:
  const LinearJob& job_;
  int first_;
  Prepared prepared_;
  std::vector<int> ends_;  // slices up to and including each part's
};

}  // namespace

std::size_t blob_bytes(int rows, int columns, int bits, int group, bool symmetric) {
  const std::size_t blocks = (rows + kBlockRows - 1) / kBlockRows, groups = (columns + group - 1) / group;
  const std::size_t parameters = symmetric || bits == 1 ? kBlockRows : 2 * kBlockRows;
  return aligned(2 * kBlockRows * blocks) + aligned(blocks * groups * parameters) +
         aligned(blocks * groups * 2 * group * bits);
}

Matrix matrix_in(const std::uint8_t* blob, int rows, int columns, int bits, int group, bool symmetric) {
  Matrix m{};
  m.rows = rows, m.columns = columns, m.bits = bits, m.group = group;
  m.symmetric = symmetric || bits == 1;
  m.blocks = (rows + kBlockRows - 1) / kBlockRows;
  m.groups = (columns + group - 1) / group;
  const std::size_t tiles = std::size_t(m.blocks) * m.groups;
  m.row_scale = reinterpret_cast<const std::uint16_t*>(blob);
  m.parameters = blob + aligned(2 * kBlockRows * std::size_t(m.blocks));
  m.codes = m.parameters + aligned(tiles * m.parameter_bytes());
  return m;
}

void run_linear(const std::vector<LinearPart>& parts, Rows x, Run run) {
  Workspace& space = workspace();
  const std::lock_guard<std::mutex> lock(space.in_use);
  const LinearJob job{kernels(), parts, x, space};
  double weights = 0;
  for (const LinearPart& part : parts) weights += double(part.w.rows) * part.w.columns;
  for (int first = 0; first < x.rows; first += kRowsAtATime) {
    const int count = std::min(kRowsAtATime, x.rows - first);
    LinearRows rows(job, first, count, run.first);
    Tasks fills(rows.fill_tasks()), slices(rows.slices());
    run_on_threads(team_size(run, rows.slices(), count * weights), [&](int thread, Team& team) {
      Buffer& scratch = space.of_thread[thread][0];
      for (int task; (task = fills.next()) >= 0;) rows.fill(task, scratch);
      team.barrier();
      for (int task; (task = slices.next()) >= 0;) rows.multiply(task, scratch);
    });
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// experts

int Entry::count(int width) const { return static_cast<int>(std::count(widths.begin(), widths.end(), width)); }

std::size_t Entry::expert_bytes(int width) const { return matrices * blob_bytes(rows, columns, width, group, symmetric); }

namespace {

// The matrices of one expert.
struct Expert {
  Matrix gate_up[2];  // gate and up, or up alone
  Matrix down;
};

Matrix matrix_of(const Entry& entry, const Blobs& blobs, int expert, int number) {
  const int width = entry.widths[expert];
  const std::size_t bytes = entry.expert_bytes(width);
  const std::uint8_t* blob = blobs[width] + entry.places[expert] * bytes + number * (bytes / entry.matrices);
  return matrix_in(blob, entry.rows, entry.columns, width, entry.group, entry.symmetric);
}

Expert expert_of(const ExpertLayer& layer, const LayerWeights& weights, int number) {
  Expert expert{};
  for (int i = 0; i < layer.matrices; ++i) expert.gate_up[i] = matrix_of(layer.gate_up, weights.gate_up, number, i);
  expert.down = matrix_of(layer.down, weights.down, number, 0);
  return expert;
}

// A token in an expert.
struct Place {
  int token;
  float weight;
};

// The tokens of one expert, or some of them, through its matrices.
struct Group {
  Group(const Kernels& kernels, const Expert& e, int number, const Place* p, int rows, const Run& run)
      : expert(e),
        index(number),
        places(p),
        x(kernels, e.gate_up[0], rows, run.first),
        hidden(kernels, e.down, rows, run.second) {}

  std::size_t bytes() const { return x.bytes() + hidden.bytes(); }
  // `same` has the same activations for matrices of the same grid: they are made ready once.
  void place(std::byte* memory, const Group* same) {
    place_of_x = same ? same->place_of_x : memory;
    x.place(place_of_x);
    hidden.place(memory + x.bytes());
  }

  Expert expert;
  int index;
  const Place* places;
  Prepared x, hidden;
  std::byte* place_of_x = nullptr;
};

// Tokens sorted by expert; inside an expert in their own order, so that sums are always formed in the same order.
class Routing {
 public:
  Routing(const Routes& routes, int tokens, int experts)
      : starts_(experts + 1), places_(std::size_t(tokens) * routes.top_k) {
    const std::size_t count = std::size_t(tokens) * routes.top_k;
    for (std::size_t i = 0; i < count; ++i) {
      if (routes.index[i] >= 0) ++starts_[routes.index[i] + 1];
    }
    for (int e = 0; e < experts; ++e) starts_[e + 1] += starts_[e];
    std::vector<int> next(starts_.begin(), starts_.end() - 1);
    for (std::size_t i = 0; i < count; ++i) {
      if (routes.index[i] < 0) continue;
      places_[next[routes.index[i]]++] = {static_cast<int>(i / routes.top_k), routes.weights[i]};
    }
  }

  int rows(int expert) const { return starts_[expert + 1] - starts_[expert]; }
  const Place* places(int expert) const { return places_.data() + starts_[expert]; }

 private:
  std::vector<int> starts_;
  std::vector<Place> places_;
};

struct ExpertsJob {
  const Kernels& kernels;
  const ExpertLayer& layer;
  const LayerWeights& weights;
  Rows x;
  std::byte* out;
  Workspace& space;
  float* sums;  // [tokens][hidden]
};

// Some groups that are worked on between two barriers.
class Batch {
 public:
  Batch(const ExpertsJob& job, std::vector<Group> groups, bool is_first, bool is_last, int threads)
      : job_(job), groups_(std::move(groups)), is_first_(is_first), is_last_(is_last), down_blocks_(blocks_of_down(threads)) {
    std::size_t bytes = 0;
    for (const Group& group : groups_) bytes += group.bytes();
    std::byte* memory = job.space.prepared.reserve(bytes);
    for (Group& group : groups_) {
      const Group* same = job.x.rows == 1 ? before(group) : nullptr;
      group.place(memory, same);
      memory += group.bytes();
      fills_.push_back(fill_tasks() + (same ? 0 : group.x.filled_rows()));
    }
  }

  int fill_tasks() const { return fills_.empty() ? 0 : fills_.back(); }
  int up_tasks() const { return static_cast<int>(groups_.size()) * slices_of(job_.layer.intermediate); }
  int down_tasks() const { return (job_.layer.hidden + down_rows() - 1) / down_rows(); }

  double products() const {
    double rows = 0;
    for (const Group& group : groups_) rows += group.x.rows();
    return rows * (job_.layer.matrices + 1) * job_.layer.hidden * job_.layer.intermediate;
  }

  // Makes one row of activations ready.
  void fill(int task, Buffer& scratch) {
    const auto found = std::upper_bound(fills_.begin(), fills_.end(), task);
    Group& group = groups_[found - fills_.begin()];
    const int row = task - (found == fills_.begin() ? 0 : *(found - 1));
    const int columns = job_.layer.hidden;
    float* values = nullptr;
    if (row < group.x.rows()) {
      values = scratch.floats(columns);
      job_.kernels.to_float(job_.x.dtype, row_of(job_.x, group.places[row].token, columns), values, columns);
    }
    group.x.fill(row, values, 0, columns);
  }

  // One slice of rows of gate and up, through the activation, made ready for down.
  void up(int task, Buffer (&scratch)[2]) {
    Group& group = groups_[task / slices_of(job_.layer.intermediate)];
    const Slice slice(group.expert.gate_up[0], task % slices_of(job_.layer.intermediate));
    const int rows = group.x.rows();
    float* results[2];
    for (int i = 0; i < job_.layer.matrices; ++i) {
      results[i] = scratch[i].floats(std::size_t(group.x.filled_rows()) * kSliceRows);
      group.x.multiply(group.expert.gate_up[i], slice.blocks, {results[i], kSliceRows});
      const std::size_t bias = std::size_t(group.index) * job_.layer.matrices + i;
      add_bias(job_.kernels, job_.weights.gate_up_bias, bias * job_.layer.intermediate + slice.first, slice.count,
               results[i], rows, kSliceRows);
    }
    const float* gate = job_.layer.matrices == 2 ? results[0] : nullptr;
    float* up = results[job_.layer.matrices - 1];
    for (int row = 0; row < group.hidden.filled_rows(); ++row) {
      const std::size_t at = std::size_t(row) * kSliceRows;
      const bool is_real = row < rows;
      if (is_real) job_.kernels.activate(job_.layer.activation, gate ? gate + at : nullptr, up + at, up + at, slice.count);
      group.hidden.fill(row, is_real ? up + at : nullptr, slice.first, slice.count);
    }
  }

  // Some columns of the output: every expert adds its share, in the order of the experts.
  void down(int task, Buffer& scratch) {
    const int first = task * down_rows(), count = std::min(down_rows(), job_.layer.hidden - first);
    if (is_first_) {
      for (int token = 0; token < job_.x.rows; ++token) {
        std::fill_n(job_.sums + std::size_t(token) * job_.layer.hidden + first, count, 0.0f);
      }
    }
    for (const Group& group : groups_) add_share(group, first, count, scratch);
    if (!is_last_) return;
    for (int token = 0; token < job_.x.rows; ++token) {
      const std::size_t at = std::size_t(token) * job_.layer.hidden + first;
      job_.kernels.from_float(job_.x.dtype, job_.sums + at, job_.out + at * item_bytes(job_.x.dtype), count);
    }
  }

 private:
  // The first group of the same width, for a single token, whose experts all get the same.
  const Group* before(const Group& group) const {
    const auto is_same = [&](const Group& other) { return other.expert.gate_up[0].bits == group.expert.gate_up[0].bits; };
    const auto found = std::find_if(groups_.data(), &group, is_same);
    return found == &group ? nullptr : found;
  }

  int blocks_of_down(int threads) const {
    const auto is_few = [](const Group& group) { return group.x.rows() <= kFewRows; };
    if (!std::all_of(groups_.begin(), groups_.end(), is_few)) return kLeastDownBlocks;
    const int blocks = (job_.layer.hidden + kBlockRows - 1) / kBlockRows;
    return std::clamp(blocks / kDownTasksPerThread / threads, kLeastDownBlocks, kMostDownBlocks);
  }

  int down_rows() const { return down_blocks_ * kBlockRows; }

  void add_share(const Group& group, int first, int count, Buffer& scratch) const {
    const Matrix& m = group.expert.down;
    const Blocks blocks{first / kBlockRows, std::min(m.blocks, first / kBlockRows + down_blocks_)};
    float* results = scratch.floats(std::size_t(group.hidden.filled_rows()) * down_rows());
    group.hidden.multiply(m, blocks, {results, static_cast<std::size_t>(down_rows())});
    add_bias(job_.kernels, job_.weights.down_bias, std::size_t(group.index) * job_.layer.hidden + first, count, results,
             group.hidden.rows(), down_rows());
    for (int row = 0; row < group.hidden.rows(); ++row) {
      const float weight = group.places[row].weight;
      const float* values = results + std::size_t(row) * down_rows();
      float* sum = job_.sums + std::size_t(group.places[row].token) * job_.layer.hidden + first;
      for (int n = 0; n < count; ++n) sum[n] += weight * values[n];
    }
  }

  const ExpertsJob& job_;
  std::vector<Group> groups_;
  std::vector<int> fills_;  // fill tasks up to and including each group's
  bool is_first_, is_last_;
  int down_blocks_;
};

// Groups of at most kRowsAtATime tokens, cut into batches of bounded memory. At least one batch: somebody has to
// write the zeros.
std::vector<std::vector<Group>> batches_of(const ExpertsJob& job, const Routing& routing, const Run& run) {
  std::vector<std::vector<Group>> batches(1);
  std::size_t bytes = 0;
  for (int e = 0; e < job.layer.experts(); ++e) {
    if (routing.rows(e) == 0) continue;
    const Expert expert = expert_of(job.layer, job.weights, e);
    for (int row = 0; row < routing.rows(e); row += kRowsAtATime) {
      const int rows = std::min(kRowsAtATime, routing.rows(e) - row);
      Group group(job.kernels, expert, e, routing.places(e) + row, rows, run);
      if (bytes > 0 && bytes + group.bytes() > kBatchBytes) {
        batches.emplace_back();
        bytes = 0;
      }
      bytes += group.bytes();
      batches.back().push_back(group);
    }
  }
  return batches;
}

void run_batch(Batch& batch, Workspace& space, const Run& run) {
  Tasks fills(batch.fill_tasks()), ups(batch.up_tasks()), downs(batch.down_tasks());
  const int tasks = std::max(batch.up_tasks(), batch.down_tasks());
  run_on_threads(team_size(run, tasks, batch.products()), [&](int thread, Team& team) {
    Buffer(&scratch)[2] = space.of_thread[thread];
    for (int task; (task = fills.next()) >= 0;) batch.fill(task, scratch[0]);
    team.barrier();
    for (int task; (task = ups.next()) >= 0;) batch.up(task, scratch);
    team.barrier();
    for (int task; (task = downs.next()) >= 0;) batch.down(task, scratch[0]);
  });
}

}  // namespace

void run_experts(const ExpertLayer& layer, const LayerWeights& weights, Rows x, Routes routes, void* out, Run run) {
  Workspace& space = workspace();
  const std::lock_guard<std::mutex> lock(space.in_use);
  const Routing routing(routes, x.rows, layer.experts());
  const ExpertsJob job{kernels(), layer, weights, x, static_cast<std::byte*>(out), space,
                       space.sums.floats(std::size_t(x.rows) * layer.hidden)};
  auto batches = batches_of(job, routing, run);
  for (std::size_t i = 0; i < batches.size(); ++i) {
    Batch batch(job, std::move(batches[i]), i == 0, i + 1 == batches.size(), run.threads);
    run_batch(batch, space, run);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// ceilings

namespace {

template <class Work>
double seconds(Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double read_bandwidth(const std::uint8_t* data, std::size_t bytes, int times, int threads) {
  constexpr std::size_t piece = 1 << 20;
  const Kernels& table = kernels();
  const int pieces = static_cast<int>(bytes / piece);
  std::atomic<std::uint64_t> seen{0};
  const double time = seconds([&] {
    for (int i = 0; i < times; ++i) {
      Tasks tasks(pieces);
      run_on_threads(threads, [&](int, Team&) {
        for (int task; (task = tasks.next()) >= 0;) seen += table.read_all(data + task * piece, piece);
      });
    }
  });
  return static_cast<double>(piece) * pieces * times / time;
}

double dot_product_rate(std::uint64_t rounds, int threads) {
  const Kernels& table = kernels();
  std::atomic<std::uint64_t> products{0};
  const double time =
      seconds([&] { run_on_threads(threads, [&](int, Team&) { products += table.dot_products(rounds); }); });
  return static_cast<double>(products) / time;
}

}  // namespace moesaic
