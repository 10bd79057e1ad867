#include "mask_router.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace moesaic {
namespace {

constexpr float kLargest = 15.0f;      // of a log error above the price, as in the reference
constexpr float kSmallestWeight = 1e-30f, kSmallestSquare = 1e-20f, kSmallestRms = 1e-6f;
constexpr int kTokensPerTask = 16;

constexpr int kLanes = 4;
using Floats4 = float __attribute__((vector_size(4 * kLanes)));

Floats4 loaded(const float* from) {
  Floats4 v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

float dot(const float* a, const float* b, int count) {
  constexpr int streams = 4;
  Floats4 sums[streams] = {};
  int i = 0;
  for (; i + streams * kLanes <= count; i += streams * kLanes) {
    for (int s = 0; s < streams; ++s) sums[s] += loaded(a + i + s * kLanes) * loaded(b + i + s * kLanes);
  }
  const Floats4 all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = (all[0] + all[1]) + (all[2] + all[3]);
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// The places of a token by weight, and what is made of them.
struct Places {
  int order[kMostPlaces];
  float weights[kMostPlaces];
  std::int64_t experts[kMostPlaces];
  float total = 0;

  Places(const MaskRouter& router, const float* given, const std::int64_t* index) {
    std::iota(order, order + router.places, 0);
    const auto before = [&](int a, int b) {  // NaN first, as torch sorts: an order has to be one for any number
      return given[a] > given[b] || (std::isnan(given[a]) && !std::isnan(given[b]));
    };
    std::stable_sort(order, order + router.places, before);
    for (int j = 0; j < router.places; ++j) {
      weights[j] = given[order[j]];
      experts[j] = index[order[j]];
      total += weights[j];
    }
  }

  // What the weights of the places that a mask runs are multiplied with, so that their sum stays.
  float factor(const float* mask, int places) const {
    const float left = dot(weights, mask, places);
    return left > 0 ? total / left : total;
  }
};

// log of the squared change of the weights under a mask
float log_change(const Places& token, const float* mask, int places) {
  const float left = dot(token.weights, mask, places), factor = token.total / std::max(left, kSmallestWeight);
  float square = 0;
  for (int j = 0; j < places; ++j) {
    const float change = token.weights[j] * (mask[j] * factor - 1);
    square += change * change;
  }
  return std::log(std::max(square, kSmallestSquare));
}

// Scratch of a thread.
struct Scratch {
  explicit Scratch(const MaskRouter& router)
      : x(router.hidden), features(router.width + router.places), inner(2 * router.width) {}
  std::vector<float> x, features, inner;
};

// The most likely mask's number.
int choose(const MaskRouter& router, const Places& token, Scratch& scratch) {
  const int width = router.width, places = router.places;
  const float mean_square = dot(scratch.x.data(), scratch.x.data(), router.hidden) / static_cast<float>(router.hidden);
  const float rms = std::max(std::sqrt(mean_square), kSmallestRms);
  for (int i = 0; i < width; ++i) {
    const float* row = router.project + std::size_t(i) * router.hidden;
    scratch.features[i] = router.sees_hidden ? dot(row, scratch.x.data(), router.hidden) / rms : 0;
  }
  for (int j = 0; j < places; ++j) {
    scratch.features[width + j] = router.sees_weights ? token.weights[j] / std::max(token.total, kSmallestWeight) : 0;
  }
  float preferred = 0;
  for (int i = 0; i < 2 * width; ++i) {
    const float* row = router.inner + std::size_t(i) * (width + places);
    scratch.inner[i] = dot(row, scratch.features.data(), width + places) + router.inner_bias[i];
  }
  for (int j = 0; router.table && j < places; ++j) {
    const std::size_t seen = std::size_t(j) * router.experts + token.experts[j];
    for (int i = 0; i < 2 * width; ++i) scratch.inner[i] += router.table[seen * 2 * width + i];
    preferred += router.prefer[seen];
  }
  for (float& value : scratch.inner) value /= 1 + std::exp(-value);
  int best = router.masks - 1;
  float least = static_cast<float>(places);  // the full mask: no error, all experts
  for (int m = router.masks - 2; m >= 0; --m) {  // downwards, and "as good" is enough: the first of equals wins
    const float* mask = router.candidates + m * places;
    const float error = router.bias[m] + router.slope[m] * log_change(token, mask, places) + preferred +
                        dot(router.outer + m * 2 * width, scratch.inner.data(), 2 * width);
    const float price = std::exp(std::min(error - router.cost, kLargest)) + std::accumulate(mask, mask + places, 0.0f);
    if (price <= least) {
      least = price;
      best = m;
    }
  }
  return best;
}

}  // namespace

void run_mask_router(const MaskRouter& router, Rows x, Routes routes, std::int64_t* index, float* weights, int threads) {
  const std::size_t bytes = x.dtype == DType::float32 ? 4 : 2;
  Tasks tasks((x.rows + kTokensPerTask - 1) / kTokensPerTask);
  run_on_threads(std::clamp(x.rows / kTokensPerTask, 1, threads), [&](int, Team&) {
    Scratch scratch(router);
    for (int task; (task = tasks.next()) >= 0;) {
      for (int t = task * kTokensPerTask; t < std::min(x.rows, (task + 1) * kTokensPerTask); ++t) {
        const std::size_t at = std::size_t(t) * router.places;
        const auto* row = static_cast<const std::byte*>(x.data) + bytes * t * router.hidden;
        kernels().to_float(x.dtype, row, scratch.x.data(), router.hidden);
        const Places token(router, routes.weights + at, routes.index + at);
        const float* mask = router.candidates + choose(router, token, scratch) * router.places;
        const float factor = token.factor(mask, router.places);
        for (int j = 0; j < router.places; ++j) {
          const bool runs = mask[j] > 0;
          index[at + j] = runs ? token.experts[j] : -1;
          weights[at + j] = runs ? token.weights[j] * factor : 0;
        }
      }
    }
  });
}

}  // namespace moesaic
