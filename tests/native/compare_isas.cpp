// Every instruction set of this build against the generic one, without Python: for machines that only an emulator has.
//
//   aarch64-linux-gnu-g++ -std=c++20 -O2 -static -march=armv8.2-a+dotprod -Inative tests/native/compare_isas.cpp
//       native/{dispatch,layer,openmp,pool,prepared}.cpp native/arch/{generic,neon}.cpp && qemu-aarch64 a.out
//
// Where multiply-add is one operation, an activation near the middle of two codes may get the other one; nothing else
// may differ by more than float32 rounding. For some numbers of rows one instruction set streams codes and the other
// unpacks them; these round activations with scales of their own, and may differ by what int8 loses. AVX2 gives a few
// groups smaller codes where sums of products with codes of 4 bits would leave 16 bits: there a part of that.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "layer.h"

namespace {

using namespace moesaic;

struct Shape {
  int rows, columns, bits, group;
  bool symmetric;
};

std::mt19937 numbers(1);

void fill_blob(std::uint8_t* blob, std::size_t bytes, const Shape& s) {
  for (std::size_t i = 0; i < bytes; ++i) blob[i] = static_cast<std::uint8_t>(numbers());
  const Matrix m = matrix_in(blob, s.rows, s.columns, s.bits, s.group, s.symmetric);
  auto* scales = reinterpret_cast<std::uint16_t*>(blob);
  for (int n = 0; n < kBlockRows * m.blocks; ++n) scales[n] = static_cast<std::uint16_t>(0x3A00 + numbers() % 128);
}

std::vector<float> product(const char* isa, const Matrix& m, const std::vector<float>& x, int rows, bool exact) {
  use_isa(isa);
  const Run run{{exact, 64, 3}, {exact, 32, 8}, 2};
  std::vector<float> out(static_cast<std::size_t>(rows) * m.rows);
  run_linear({{m, {nullptr, DType::float32}, out.data()}}, {x.data(), DType::float32, rows}, run);
  return out;
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double off = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    off += (a[i] - b[i]) * double(a[i] - b[i]);
    size += double(b[i]) * b[i];
  }
  return std::sqrt(off / size);
}

// Whether so many rows stream the codes.
bool streams(const char* isa, int rows) {
  use_isa(isa);
  return rows <= kernels().few_pays;
}

double allowed_difference(const char* isa, const Shape& s, int rows, bool exact) {
  if (exact) return 1e-3;
  if (streams(isa, rows) != streams("generic", rows)) return 1.5e-2;
  const bool has_smaller_codes = std::strcmp(isa, "avx2") == 0 && s.bits == 4 && s.group > 32 && !streams(isa, rows);
  return has_smaller_codes ? 4e-3 : 1e-3;
}

// The largest difference, as a share of what is allowed.
double worst_of(const char* isa, const Shape& s) {
  const std::size_t bytes = blob_bytes(s.rows, s.columns, s.bits, s.group, s.symmetric);
  // no byte more than the blob: a memory checker sees reads beyond its end
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(64, bytes), &std::free);
  auto* blob = static_cast<std::uint8_t*>(memory.get());
  fill_blob(blob, bytes, s);
  const Matrix m = matrix_in(blob, s.rows, s.columns, s.bits, s.group, s.symmetric);
  std::normal_distribution<float> normal;
  double worst = 0;
  for (int rows : {1, 2, 3, 4, 5, 13, 30, 70}) {
    std::vector<float> x(static_cast<std::size_t>(rows) * s.columns);
    for (float& value : x) value = normal(numbers);
    for (bool exact : {false, true}) {
      const double found = difference(product(isa, m, x, rows, exact), product("generic", m, x, rows, exact));
      worst = std::fmax(worst, found / allowed_difference(isa, s, rows, exact));
    }
  }
  return worst;
}

}  // namespace

int main() {
  int failures = 0;
  for (const char* const* isa = known_isas(); *isa; ++isa) {
    if (!isa_runs_here(*isa)) continue;
    double worst = 0;
    for (int bits : {1, 2, 3, 4, 8}) {
      for (int group : {32, 64, 128}) {
        for (bool symmetric : {false, true}) worst = std::fmax(worst, worst_of(*isa, {100, 610, bits, group, symmetric}));
      }
    }
    const bool is_good = worst < 1;
    std::printf("%-8s %s, largest difference %.2g of what is allowed\n", *isa, is_good ? "agrees" : "DIFFERS", worst);
    failures += !is_good;
  }
  return failures;
}
