#include "prepared.h"

#include <algorithm>
#include <cstring>

namespace moesaic {
namespace {

constexpr std::size_t kAlignment = 64;

std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

Prepared::Prepared(const Kernels& kernels, const Matrix& like, int rows, Rounding rounding)
    : kernels_(&kernels),
      like_(like),
      rows_(rows),
      filled_rows_(rows),
      panel_(kernels.few_rows),
      kernel_(rounding.exact ? Kernel::exact : rows <= kernels.few_pays ? Kernel::few : Kernel::many) {
  if (kernel_ == Kernel::few) cut_.stretch = std::min(rounding.stretch, like.group);
  if (kernel_ == Kernel::many) {
    if (rounding.spills > 0) cut_.spills = std::max(1, rounding.spills * like.group / 128);
    panel_ = kernels.panel_rows;
    filled_rows_ = (rows + kRowStep - 1) / kRowStep * kRowStep;
  }
}

// The last panel of `few` is as wide as there are rows left; `many` has full panels only.
int Prepared::panel_of(int row) const {
  return kernel_ == Kernel::few ? std::min(panel_, filled_rows_ - row / panel_ * panel_) : panel_;
}

// One per group and row, full panels.
std::size_t Prepared::scale_count() const {
  const std::size_t panels = (filled_rows_ + panel_ - 1) / panel_;
  return panels * panel_ * like_.groups;
}

std::size_t Prepared::bytes() const {
  const std::size_t scales = scale_count();
  if (kernel_ == Kernel::exact) return aligned(sizeof(float) * scales * like_.group);
  return aligned(scales * cut_.codes(like_.group)) + aligned(sizeof(float) * scales * cut_.scales(like_.group)) +
         aligned(sizeof(float) * scales) + aligned(scales * cut_.spills);
}

void Prepared::place(std::byte* memory) {
  const std::size_t scales = scale_count();
  values_ = reinterpret_cast<float*>(memory);
  codes_ = reinterpret_cast<std::int8_t*>(memory);
  scales_ = reinterpret_cast<float*>(memory + aligned(scales * cut_.codes(like_.group)));
  sums_ = scales_ + aligned(sizeof(float) * scales * cut_.scales(like_.group)) / sizeof(float);
  spilled_ = reinterpret_cast<std::uint8_t*>(sums_ + aligned(sizeof(float) * scales) / sizeof(float));
}

// What rows `row` and following ones have, `row` the first of a panel.
Panel Prepared::panel_at(int row) const {
  const std::size_t at = std::size_t(row) * like_.groups;
  return {codes_ + at * cut_.codes(like_.group), scales_ + at * cut_.scales(like_.group), sums_ + at,
          spilled_ + at * cut_.spills, cut_};
}

void Prepared::fill(int row, const float* x, int first, int count) {
  if (kernel_ == Kernel::exact) return fill_exact(row, x, first, count);
  const int first_group = first / like_.group;
  // up to the last column means up to the end of the last group
  const int groups = first + count < like_.columns ? count / like_.group : like_.groups - first_group;
  const int panel = panel_of(row);
  const std::size_t at = std::size_t(row / panel_ * panel_) * like_.groups + std::size_t(first_group) * panel;
  const std::size_t in_panel = row % panel_, scales = cut_.stretch > 0 ? kParts : 1;  // side by side
  kernels_->quantize(like_, x, x ? count : 0, groups, cut_, panel, codes_ + at * cut_.codes(like_.group) + kQuad * in_panel,
                     scales_ + at * cut_.scales(like_.group) + scales * in_panel, sums_ + at + in_panel,
                     spilled_ + at * cut_.spills + in_panel);
}

void Prepared::fill_exact(int row, const float* x, int first, int count) {
  float* to = values_ + std::size_t(row) * like_.padded_columns() + first;
  std::memcpy(to, x, sizeof(float) * count);
  if (first + count < like_.columns) return;
  std::fill(to + count, to + like_.padded_columns() - first, 0.0f);
}

void Prepared::multiply(const Matrix& m, Blocks blocks, Output out) const {
  switch (kernel_) {
    case Kernel::few:
      return multiply_few(m, blocks, out);
    case Kernel::exact:
      return multiply_exact(m, blocks, out);
    case Kernel::many:
      return kernels_->many(m, panel_at(0), rows_, blocks, out);
  }
}

// With several panels, block by block: the codes come from memory for the first and from the cache for the others.
void Prepared::multiply_few(const Matrix& m, Blocks blocks, Output out) const {
  if (rows_ <= panel_) return kernels_->few(m, panel_at(0), rows_, blocks, out);
  for (int block = blocks.first; block < blocks.last; ++block) {
    for (int row = 0; row < rows_; row += panel_) {
      float* results = out.data + row * out.stride + kBlockRows * (block - blocks.first);
      kernels_->few(m, panel_at(row), panel_of(row), {block, block + 1}, {results, out.stride});
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
