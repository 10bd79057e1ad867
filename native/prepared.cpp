#include "prepared.h"

#include <algorithm>
#include <cstring>

namespace moesaic {
namespace {

constexpr int kRowStep = 4;          // `many` works on rows in multiples of this
constexpr int kRestColumns = 512;    // of a row whose planes are made at a time
constexpr std::size_t kAlignment = 64;

std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

Prepared::Prepared(const Kernels& kernels, const Matrix& like, int rows, Rounding rounding)
    : kernels_(&kernels),
      like_(like),
      rows_(rows),
      planes_(std::max(1, rounding.planes)),
      code_rows_(rows * planes_),
      panel_(kernels.few_rows) {
  const bool few = code_rows_ <= kernels.few_pays[planes_ - 1];
  kernel_ = rounding.planes == 0 ? Kernel::exact : few ? Kernel::few : Kernel::many;
  if (kernel_ == Kernel::many) {
    panel_ = kernels.panel_rows;
    code_rows_ = (code_rows_ + kRowStep - 1) / kRowStep * kRowStep;
    like_.group = std::min(like.group, rounding.most_columns);
    like_.groups = like.padded_columns() / like_.group;
  }
}

// The last panel of `few` is as wide as there are rows left; `many` has full panels only.
int Prepared::panel_of(int row) const {
  return kernel_ == Kernel::few ? std::min(panel_, code_rows_ - row / panel_ * panel_) : panel_;
}

// One per group and row, full panels.
std::size_t Prepared::scale_count() const {
  const std::size_t panels = (code_rows_ + panel_ - 1) / panel_;
  return panels * panel_ * like_.groups;
}

std::size_t Prepared::bytes() const {
  const std::size_t scales = scale_count();
  if (kernel_ == Kernel::exact) return aligned(sizeof(float) * scales * like_.group);
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
  if (kernel_ == Kernel::exact) return fill_exact(row, x, first, count);
  if (planes_ == 2) return fill_planes(row, x, first, count);
  const int first_group = first / like_.group;
  // up to the last column means up to the end of the last group, which may be half of one of the matrix
  const int groups = first + count < like_.columns ? count / like_.group : like_.groups - first_group;
  quantize(row, x, first_group, groups, count, nullptr);
}

void Prepared::fill_exact(int row, const float* x, int first, int count) {
  float* to = values_ + std::size_t(row) * like_.padded_columns() + first;
  std::memcpy(to, x, sizeof(float) * count);
  if (first + count < like_.columns) return;
  std::fill(to + count, to + like_.padded_columns() - first, 0.0f);
}

// In pieces, so that what the first plane leaves stays on the stack.
void Prepared::fill_planes(int row, const float* x, int first, int count) {
  float rest[kRestColumns];
  const int end = first + count < like_.columns ? first + count : like_.padded_columns();
  for (int at = first; at < end; at += kRestColumns) {
    const int first_group = at / like_.group, groups = (std::min(kRestColumns, end - at) + like_.group - 1) / like_.group;
    const int left = std::clamp(first + count - at, 0, groups * like_.group);
    quantize(2 * row, x ? x + (at - first) : nullptr, first_group, groups, left, rest);
    quantize(2 * row + 1, x ? rest : nullptr, first_group, groups, groups * like_.group, nullptr);
  }
}

void Prepared::quantize(int code_row, const float* x, int first_group, int groups, int count, float* rest) {
  const int panel = panel_of(code_row);
  const std::size_t start = std::size_t(code_row / panel_ * panel_) * like_.groups;  // of the panel, in scales
  const std::size_t in_panel = code_row % panel_;
  const std::size_t at = start + std::size_t(first_group) * panel;
  kernels_->quantize(like_, x, x ? count : 0, groups, parts(), panel, codes_ + at * like_.group + kQuad * in_panel,
                     scales_ + (at + in_panel) * parts(), sums_ + at + in_panel, rest);
}

void Prepared::multiply(const Matrix& m, Blocks blocks, Output out) const {
  switch (kernel_) {
    case Kernel::few:
      multiply_few(m, blocks, out);
      if (planes_ == 2) add_planes(blocks, out);
      break;
    case Kernel::exact:
      multiply_exact(m, blocks, out);
      break;
    case Kernel::many:
      kernels_->many(m, {codes_, scales_, sums_, like_.group, planes_}, rows_ * planes_, blocks, out);
      break;
  }
}

// After `few`, for which a plane is a row like others.
void Prepared::add_planes(Blocks blocks, Output out) const {
  const int width = kBlockRows * (blocks.last - blocks.first);
  for (int row = 0; row < rows_; ++row) {
    float* to = out.data + row * out.stride;
    const float *coarse = out.data + 2 * row * out.stride, *fine = coarse + out.stride;
    for (int n = 0; n < width; ++n) to[n] = coarse[n] + fine[n];
  }
}

// With several panels, block by block: the codes come from memory for the first and from the cache for the others.
void Prepared::multiply_few(const Matrix& m, Blocks blocks, Output out) const {
  if (code_rows_ <= panel_) return kernels_->few(m, {codes_, scales_, sums_, m.group}, code_rows_, blocks, out);
  for (int block = blocks.first; block < blocks.last; ++block) {
    for (int row = 0; row < code_rows_; row += panel_) {
      const std::size_t at = std::size_t(row) * m.groups;
      float* results = out.data + row * out.stride + kBlockRows * (block - blocks.first);
      kernels_->few(m, {codes_ + at * m.group, scales_ + at * kParts, sums_ + at, m.group}, panel_of(row), {block, block + 1},
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
