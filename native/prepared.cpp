#include "prepared.h"

#include <algorithm>
#include <cstring>

namespace moesaic {
namespace {

constexpr int kRowStep = 4;          // `many` works on rows in multiples of this
constexpr int kFewAtMost = 4;        // activation rows up to which streaming codes beats unpacking them
constexpr std::size_t kAlignment = 64;

std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

Prepared::Prepared(const Kernels& kernels, const Matrix& like, int rows, bool exact)
    : kernels_(&kernels), like_(like), rows_(rows), filled_rows_(rows), panel_(kernels.few_rows) {
  way_ = exact ? Way::exact : rows <= kFewAtMost ? Way::few : Way::many;
  if (way_ == Way::many) {
    panel_ = kernels.panel_rows;
    filled_rows_ = (rows + kRowStep - 1) / kRowStep * kRowStep;
  }
}

// The last panel of `few` is as wide as there are rows left; `many` has full panels only.
int Prepared::panel_of(int row) const {
  return way_ == Way::few ? std::min(panel_, rows_ - row / panel_ * panel_) : panel_;
}

// One per group and row, full panels.
std::size_t Prepared::scale_count() const {
  const std::size_t panels = (rows_ + panel_ - 1) / panel_;
  return panels * panel_ * like_.groups;
}

std::size_t Prepared::bytes() const {
  const std::size_t scales = scale_count();
  if (way_ == Way::exact) return aligned(sizeof(float) * scales * like_.group);
  return aligned(scales * like_.group) + aligned(sizeof(float) * scales * parts()) + aligned(sizeof(float) * scales);
}

void Prepared::place(std::byte* memory) {
  const std::size_t scales = scale_count();
  values_ = reinterpret_cast<float*>(memory);
  codes_ = reinterpret_cast<std::int8_t*>(memory);
  scales_ = reinterpret_cast<float*>(memory + aligned(scales * like_.group));
  sums_ = scales_ + aligned(sizeof(float) * scales * parts()) / sizeof(float);
}

void Prepared::fill(int row, const float* x, int first, int count) {
  const int first_group = first / like_.group;
  const int groups = std::min((count + like_.group - 1) / like_.group, like_.groups - first_group);
  if (way_ == Way::exact) {
    float* to = values_ + std::size_t(row) * like_.padded_columns() + first;
    std::memcpy(to, x, sizeof(float) * count);
    std::fill(to + count, to + groups * like_.group, 0.0f);
    return;
  }
  const int panel = panel_of(row);
  const std::size_t start = std::size_t(row / panel_ * panel_) * like_.groups;  // of the panel, in scales
  const std::size_t in_panel = row % panel_;
  const std::size_t at = start + std::size_t(first_group) * panel;
  kernels_->quantize(like_, x, x ? count : 0, groups, parts(), panel,
                     codes_ + at * like_.group + kQuad * in_panel, scales_ + (at + in_panel) * parts(),
                     sums_ + at + in_panel);
}

void Prepared::multiply(const Matrix& m, Blocks blocks, Output out) const {
  switch (way_) {
    case Way::few:
      return multiply_few(m, blocks, out);
    case Way::exact:
      return multiply_exact(m, blocks, out);
    case Way::many:
      return kernels_->many(m, {codes_, scales_, sums_}, rows_, blocks, out);
  }
}

// With several panels, block by block: the codes come from memory for the first and from the cache for the others.
void Prepared::multiply_few(const Matrix& m, Blocks blocks, Output out) const {
  if (rows_ <= panel_) return kernels_->few(m, {codes_, scales_, sums_}, rows_, blocks, out);
  for (int block = blocks.first; block < blocks.last; ++block) {
    for (int row = 0; row < rows_; row += panel_) {
      const std::size_t at = std::size_t(row) * m.groups;
      float* results = out.data + row * out.stride + kBlockRows * (block - blocks.first);
      kernels_->few(m, {codes_ + at * m.group, scales_ + at * kParts, sums_ + at}, panel_of(row), {block, block + 1},
                    {results, out.stride});
    }
  }
}

void Prepared::multiply_exact(const Matrix& m, Blocks blocks, Output out) const {
  const std::size_t stride = m.padded_columns();
  for (int block = blocks.first; block < blocks.last; ++block) {
    for (int row = 0; row < rows_; row += panel_) {
      float* results = out.data + row * out.stride + kBlockRows * (block - blocks.first);
      kernels_->exact(m, values_ + row * stride, stride, std::min(panel_, rows_ - row), {block, block + 1},
                      {results, out.stride});
    }
  }
}

}  // namespace moesaic
