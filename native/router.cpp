#include "router.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <vector>

#include "dense.h"

namespace moesaic {
namespace {

constexpr float kSmallestSum = 1e-20f;

// Descending, NaN first: an order for any number.
bool before(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

// The numbers of the `count` largest, best first, at `order`.
void find_largest(const float* values, int size, int count, int* order) {
  std::iota(order, order + size, 0);
  std::partial_sort(order, order + count, order + size, [&](int a, int b) {
    return before(values[a], values[b]) || (a < b && !before(values[b], values[a]));
  });
}

// Scratch for one token.
struct Scratch {
  explicit Scratch(const Router& router)
      : shares(router.experts), choice(router.experts), groups(router.groups), order(router.experts) {}
  std::vector<float> shares, choice, groups;
  std::vector<int> order;
};

void softmax(const float* logits, float* shares, int count) {
  const float top = *std::max_element(logits, logits + count);
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += shares[i] = std::exp(logits[i] - top);
  for (int i = 0; i < count; ++i) shares[i] /= sum;
}

// Takes the experts of all groups but the best out of the choice.
void keep_groups(const Router& router, Scratch& s) {
  if (router.kept_groups == router.groups) return;
  const int size = router.experts / router.groups;
  for (int g = 0; g < router.groups; ++g) {
    find_largest(s.choice.data() + g * size, size, std::min(2, size), s.order.data());
    s.groups[g] = s.choice[g * size + s.order[0]] + (size > 1 ? s.choice[g * size + s.order[1]] : 0);
  }
  find_largest(s.groups.data(), router.groups, router.kept_groups, s.order.data());
  std::vector<bool> kept(router.groups);
  for (int i = 0; i < router.kept_groups; ++i) kept[s.order[i]] = true;
  for (int e = 0; e < router.experts; ++e) {
    if (!kept[e / size]) s.choice[e] = -std::numeric_limits<float>::infinity();
  }
}

void choose(const Router& router, const float* logits, Scratch& s, std::int64_t* index, float* shares) {
  if (router.sigmoid) {
    for (int e = 0; e < router.experts; ++e) s.shares[e] = 1 / (1 + std::exp(-logits[e]));
  } else {
    softmax(logits, s.shares.data(), router.experts);
  }
  for (int e = 0; e < router.experts; ++e) s.choice[e] = s.shares[e] + (router.choice_bias ? router.choice_bias[e] : 0);
  keep_groups(router, s);
  find_largest(s.choice.data(), router.experts, router.top_k, s.order.data());
  float sum = 0;
  for (int j = 0; j < router.top_k; ++j) sum += s.shares[s.order[j]];
  const float factor = router.scale / (router.normalises ? std::max(sum, kSmallestSum) : 1);
  for (int j = 0; j < router.top_k; ++j) {
    index[j] = s.order[j];
    shares[j] = s.shares[s.order[j]] * factor;
  }
}

}  // namespace

void run_router(const Router& router, Rows x, void* logits, DType logits_dtype, std::int64_t* index, float* shares,
                int threads) {
  std::vector<float> wide(std::size_t(x.rows) * router.hidden), found(std::size_t(x.rows) * router.experts);
  kernels().to_float(x.dtype, x.data, wide.data(), static_cast<int>(wide.size()));
  run_dense(router.weight, router.experts, router.hidden, {wide.data(), DType::float32, x.rows}, found.data(), threads);
  if (router.logit_bias.data) {
    std::vector<float> bias(router.experts);
    kernels().to_float(router.logit_bias.dtype, router.logit_bias.data, bias.data(), router.experts);
    for (std::size_t i = 0; i < found.size(); ++i) found[i] += bias[i % router.experts];
  }
  kernels().from_float(logits_dtype, found.data(), logits, static_cast<int>(found.size()));
  kernels().to_float(logits_dtype, logits, found.data(), static_cast<int>(found.size()));
  Scratch scratch(router);
  for (int t = 0; t < x.rows; ++t) {
    const std::size_t at = std::size_t(t) * router.top_k;
    choose(router, found.data() + std::size_t(t) * router.experts, scratch, index + at, shares + at);
  }
}

}  // namespace moesaic
