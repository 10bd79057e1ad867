// What bindings ask of their arguments: each check names the argument that is wrong.

#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "layer.h"
#include "mask_router.h"
#include "norm.h"
#include "router.h"

namespace moesaic {

namespace nb = nanobind;

using Array = nb::ndarray<nb::ro>;
using Result = nb::ndarray<>;
using Shape = std::vector<std::int64_t>;
using Arrays = std::vector<Array>;

constexpr std::int64_t kMostRows = 1 << 24;  // of matrices and activations: keeps every product of sizes far from overflow
constexpr std::size_t kBlobAlignment = 64;

[[noreturn]] inline void refuse(const std::string& argument, const std::string& problem) {
  throw std::invalid_argument(argument + ": " + problem);
}

inline std::string text(const Shape& shape) {
  std::string result = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + "]";
}

// ---------------------------------------------------------------------------------------------------------------------
// arrays

template <class Any>
Shape shape_of(const Any& array) {
  Shape shape;
  for (std::size_t i = 0; i < array.ndim(); ++i) shape.push_back(static_cast<std::int64_t>(array.shape(i)));
  return shape;
}

template <class Any>
bool is_contiguous(const Any& array) {
  std::int64_t expected = 1;
  for (std::size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) != 1 && array.stride(i) != expected) return false;
    expected *= static_cast<std::int64_t>(array.shape(i));
  }
  return true;
}

template <class Any>
void check_memory(const std::string& name, const Any& array, std::size_t alignment) {
  if (array.device_type() != nb::device::cpu::value) refuse(name, "must be in main memory (a CPU tensor)");
  if (array.size() == 0) return;
  if (!is_contiguous(array)) refuse(name, "must be contiguous");
  if (reinterpret_cast<std::uintptr_t>(array.data()) % alignment) {
    refuse(name, "misaligned: its memory must start at a multiple of " + std::to_string(alignment) + " bytes");
  }
}

template <class Any>
void check_shape(const std::string& name, const Any& array, const Shape& expected) {
  const Shape found = shape_of(array);
  if (found != expected) refuse(name, "expected shape " + text(expected) + ", found " + text(found));
}

template <class Any>
DType float_dtype(const std::string& name, const Any& array) {
  const nb::dlpack::dtype dtype = array.dtype();
  if (dtype == nb::dtype<float>()) return DType::float32;
  if (dtype == nb::dlpack::dtype{static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1}) return DType::bfloat16;
  if (dtype == nb::dlpack::dtype{static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 16, 1}) return DType::float16;
  refuse(name, "expected float32, bfloat16 or float16");
}

// The data of an array of exactly this type and shape.
template <class Element>
const Element* checked(const std::string& name, const Array& array, const Shape& shape, const char* type) {
  if (array.dtype() != nb::dtype<Element>()) refuse(name, std::string("expected ") + type);
  check_shape(name, array, shape);
  check_memory(name, array, sizeof(Element));
  return static_cast<const Element*>(array.data());
}

inline const std::uint8_t* checked_blob(const std::string& name, const Array& array, const Shape& shape) {
  const auto* data = checked<std::uint8_t>(name, array, shape, "uint8");
  check_memory(name, array, kBlobAlignment);
  return data;
}

inline std::size_t alignment_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

inline Bias checked_bias(const std::string& name, const std::optional<Array>& array, const Shape& shape) {
  if (!array) return {nullptr, DType::float32};
  const DType dtype = float_dtype(name, *array);
  check_shape(name, *array, shape);
  check_memory(name, *array, alignment_of(dtype));
  return {array->data(), dtype};
}

// Rows of `columns`: the last dimension of an array of two or more.
inline Rows checked_rows(const std::string& name, const Array& x, std::int64_t columns) {
  if (x.ndim() < 2) refuse(name, "expected 2 dimensions or more, found shape " + text(shape_of(x)));
  const std::size_t last = x.ndim() - 1;
  std::int64_t rows = 1;
  for (std::size_t i = 0; i < last && rows <= kMostRows; ++i) rows *= static_cast<std::int64_t>(x.shape(i));
  if (static_cast<std::int64_t>(x.shape(last)) != columns) {
    refuse(name, "expected shape [.., " + std::to_string(columns) + "], found " + text(shape_of(x)));
  }
  if (rows > kMostRows) refuse(name, std::to_string(rows) + " rows are more than " + std::to_string(kMostRows));
  const DType dtype = float_dtype(name, x);
  check_memory(name, x, alignment_of(dtype));
  return {x.data(), dtype, static_cast<int>(rows)};
}

inline void* checked_result(Result& out, const Rows& x, std::int64_t columns) {
  const Rows found = checked_rows("out", Array(out), columns);
  if (found.rows != x.rows) refuse("out", "expected " + std::to_string(x.rows) + " rows, found " + std::to_string(found.rows));
  if (found.dtype != x.dtype) refuse("out", "expected the dtype of x");
  return out.data();
}

// ---------------------------------------------------------------------------------------------------------------------
// numbers

inline int checked_size(const char* name, std::int64_t value) {
  if (value < 1 || value > kMostRows) refuse(name, std::to_string(value) + " is not in 1 .. " + std::to_string(kMostRows));
  return static_cast<int>(value);
}

inline bool is_packed_width(int bits) { return std::find(std::begin(kWidths), std::end(kWidths), bits) != std::end(kWidths); }

inline int checked_bits(const std::string& name, int bits) {
  if (!is_packed_width(bits)) refuse(name, "width " + std::to_string(bits) + " is not one of 1, 2, 3, 4, 8");
  return bits;
}

inline int checked_group(int group) {
  if (group != 32 && group != 64 && group != 128) {
    refuse("group_size", std::to_string(group) + " is not one of 32, 64, 128");
  }
  return group;
}

inline int checked_threads(int threads) {
  if (threads < 1) refuse("threads", std::to_string(threads) + " is less than 1");
  return threads;
}

// What keeps an expert within 1 %: docs/decisions/0007-int8-activations.md.
inline Run checked_run(const std::string& precision, int threads) {
  checked_threads(threads);
  if (precision == "int8") return {{false, 32, 4}, {false, 32, 8}, threads};
  if (precision == "int8-single") return {{false, 64, 0}, {false, 64, 0}, threads};
  if (precision == "exact") return {{true, 0, 0}, {true, 0, 0}, threads};
  refuse("precision", "'" + precision + "' is not one of int8, int8-single and exact");
}

inline ActivationKind checked_kind(const std::string& kind) {
  if (kind == "silu") return ActivationKind::silu;
  if (kind == "gelu") return ActivationKind::gelu;
  if (kind == "gelu_tanh") return ActivationKind::gelu_tanh;
  if (kind == "relu") return ActivationKind::relu;
  if (kind == "swiglu_clamped") return ActivationKind::swiglu_clamped;
  refuse("activation", "unknown kind '" + kind + "'; known are silu, gelu, gelu_tanh, relu and swiglu_clamped");
}

// ---------------------------------------------------------------------------------------------------------------------
// packed

inline Entry entry_of(const std::string& name, std::vector<int> widths, int matrices, int rows, int columns, int group,
               bool symmetric) {
  std::vector<int> places, counts(kStoredWidth + 1);
  for (int width : widths) {
    if (width != kStoredWidth) checked_bits(name, width);
    places.push_back(counts[width]++);
  }
  return {matrices, rows, columns, group, symmetric, std::move(widths), std::move(places)};
}

// The tensors of an entry, in ascending order of width.
inline Blobs checked_blobs(const std::string& name, const Entry& entry, const Arrays& tensors) {
  Blobs blobs{};
  std::size_t next = 0;
  for (int width : kWidths) {
    const std::int64_t count = entry.count(width);
    if (count == 0) continue;
    const std::string tensor = name + " tensor of width " + std::to_string(width);
    if (next == tensors.size()) refuse(tensor, "missing");
    blobs[width] = checked_blob(tensor, tensors[next++], {count, static_cast<std::int64_t>(entry.expert_bytes(width))});
  }
  if (next != tensors.size()) refuse(name, std::to_string(tensors.size()) + " tensors where the widths need " + std::to_string(next));
  return blobs;
}

// ---------------------------------------------------------------------------------------------------------------------
// between the matrices

inline Norm checked_norm(const std::string& name, const std::optional<Array>& weight, std::int64_t columns, float epsilon,
                  float offset) {
  if (!weight) return {nullptr, DType::float32, 0, 0};
  const Bias found = checked_bias(name, weight, {columns});
  return {found.data, found.dtype, epsilon, offset};
}

inline Router checked_router(const Array& weight, const std::optional<Array>& logit_bias,
                      const std::optional<Array>& choice_bias, std::int64_t top_k, bool sigmoid, bool normalises,
                      std::int64_t groups, std::int64_t kept_groups, float scale) {
  if (weight.ndim() != 2) refuse("weight", "expected 2 dimensions, found shape " + text(shape_of(weight)));
  Router router{};
  router.experts = checked_size("weight", static_cast<std::int64_t>(weight.shape(0)));
  router.hidden = checked_size("weight", static_cast<std::int64_t>(weight.shape(1)));
  router.top_k = checked_size("index", top_k);
  router.groups = checked_size("groups", groups), router.kept_groups = checked_size("kept_groups", kept_groups);
  const int experts = router.experts;
  if (experts > kMostExperts) refuse("weight", "more than " + std::to_string(kMostExperts) + " experts");
  if (experts % router.groups) refuse("groups", std::to_string(experts) + " experts do not make that many");
  if (router.kept_groups > router.groups) refuse("kept_groups", "more than groups");
  if (router.top_k > experts / router.groups * router.kept_groups) refuse("index", "more places than experts to choose from");
  router.weight = checked<std::uint16_t>("weight", weight, {experts, router.hidden}, "uint16, the bits of bfloat16");
  router.logit_bias = checked_bias("logit_bias", logit_bias, {experts});
  if (choice_bias) router.choice_bias = checked<float>("choice_bias", *choice_bias, {experts}, "float32");
  router.sigmoid = sigmoid, router.normalises = normalises, router.scale = scale;
  return router;
}

// Rows of heads of `size` numbers: how many heads.
inline int checked_heads(const char* name, const Array& array, std::int64_t rows, std::int64_t size, DType dtype) {
  const auto count = static_cast<std::int64_t>(array.size());
  if (count < 1 || count > std::int64_t{kMostRows} * 64 || count % (rows * size)) {
    refuse(name, "expected " + std::to_string(rows) + " rows of heads of " + std::to_string(size) + ", found shape " + text(shape_of(array)));
  }
  if (float_dtype(name, array) != dtype) refuse(name, "expected another dtype: all have the same");
  check_memory(name, array, alignment_of(dtype));
  return checked_size(name, count / rows / size);
}

// An array [rows][heads][count][size] whose heads may be apart from each other, the `count` of each one after the other.
inline void check_heads_apart(const char* name, const Array& array) {
  if (array.device_type() != nb::device::cpu::value) refuse(name, "must be in main memory (a CPU tensor)");
  if (array.size() == 0) return;
  const bool one_by_one = array.shape(3) == 1 || array.stride(3) == 1;
  const bool one_after_other = array.shape(2) == 1 || array.stride(2) == static_cast<std::int64_t>(array.shape(3));
  if (!one_by_one || !one_after_other || array.stride(0) < 0 || array.stride(1) < 0) {
    refuse(name, "the last two dimensions must be contiguous");
  }
  if (reinterpret_cast<std::uintptr_t>(array.data()) % alignment_of(float_dtype(name, array))) refuse(name, "misaligned");
}

// ---------------------------------------------------------------------------------------------------------------------
// skipping

// The state of OTP for one layer. Sizes follow from `candidates`, `project` and `experts`, and every other array has to
// fit them.
struct MaskArrays {
  Array candidates, project, inner, inner_bias, outer, slope, bias;
  std::optional<Array> table, prefer;
};

inline MaskRouter checked_mask_router(const MaskArrays& arrays, std::int64_t experts, float cost, bool sees_hidden, bool sees_weights) {
  const auto& [candidates, project, inner, inner_bias, outer, slope, bias, table, prefer] = arrays;
  for (const auto& [name, array] : {std::pair{"candidates", &candidates}, {"project", &project}}) {
    if (array->ndim() != 2) refuse(name, "expected 2 dimensions, found shape " + text(shape_of(*array)));
  }
  const std::int64_t masks = candidates.shape(0), places = candidates.shape(1), width = project.shape(0), hidden = project.shape(1);
  if (places < 1 || places > kMostPlaces) refuse("candidates", "places must be 1 .. " + std::to_string(kMostPlaces));
  for (const auto& [name, size] : {std::pair{"candidates", masks}, {"project", width}, {"project", hidden}}) checked_size(name, size);
  checked_size("experts", experts);
  if (width > 4096 || masks > 4096) refuse("project", "more than 4096 numbers or masks");
  if (table.has_value() != prefer.has_value()) refuse("prefer", "table and prefer come together");
  const auto floats = [](const char* name, const Array& array, const Shape& shape) {
    return checked<float>(name, array, shape, "float32");
  };
  MaskRouter router{};
  router.hidden = static_cast<int>(hidden), router.width = static_cast<int>(width), router.places = static_cast<int>(places);
  router.experts = static_cast<int>(experts), router.masks = static_cast<int>(masks);
  router.candidates = floats("candidates", candidates, {masks, places});
  router.project = floats("project", project, {width, hidden});
  router.inner = floats("inner", inner, {2 * width, width + places});
  router.inner_bias = floats("inner_bias", inner_bias, {2 * width});
  router.outer = floats("outer", outer, {masks - 1, 2 * width});
  router.slope = floats("slope", slope, {masks - 1});
  router.bias = floats("bias", bias, {masks - 1});
  if (table) {
    router.table = floats("table", *table, {places, experts, 2 * width});
    router.prefer = floats("prefer", *prefer, {places, experts});
  }
  router.cost = cost, router.sees_hidden = sees_hidden, router.sees_weights = sees_weights;
  return router;
}

}  // namespace moesaic
