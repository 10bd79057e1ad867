// The Python face: checks every argument, names the one that is wrong, releases the GIL and runs.
//
// Arrays come in as they are (no conversion, no copy); `cpu.py` has the friendly signatures.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "attention.h"
#include "dense.h"
#include "layer.h"
#include "mask_router.h"
#include "norm.h"
#include "pool.h"
#include "router.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace moesaic {
namespace {

using Array = nb::ndarray<nb::ro>;
using Result = nb::ndarray<>;
using Shape = std::vector<std::int64_t>;

constexpr std::int64_t kMostRows = 1 << 24;  // of matrices and activations: keeps every product of sizes far from overflow
constexpr std::size_t kBlobAlignment = 64;

[[noreturn]] void refuse(const std::string& argument, const std::string& problem) {
  throw std::invalid_argument(argument + ": " + problem);
}

std::string text(const Shape& shape) {
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

const std::uint8_t* checked_blob(const std::string& name, const Array& array, const Shape& shape) {
  const auto* data = checked<std::uint8_t>(name, array, shape, "uint8");
  check_memory(name, array, kBlobAlignment);
  return data;
}

std::size_t alignment_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

Bias checked_bias(const std::string& name, const std::optional<Array>& array, const Shape& shape) {
  if (!array) return {nullptr, DType::float32};
  const DType dtype = float_dtype(name, *array);
  check_shape(name, *array, shape);
  check_memory(name, *array, alignment_of(dtype));
  return {array->data(), dtype};
}

// Rows of `columns`: the last dimension of an array of two or more.
Rows checked_rows(const std::string& name, const Array& x, std::int64_t columns) {
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

void* checked_result(Result& out, const Rows& x, std::int64_t columns) {
  const Rows found = checked_rows("out", Array(out), columns);
  if (found.rows != x.rows) refuse("out", "expected " + std::to_string(x.rows) + " rows, found " + std::to_string(found.rows));
  if (found.dtype != x.dtype) refuse("out", "expected the dtype of x");
  return out.data();
}

// ---------------------------------------------------------------------------------------------------------------------
// numbers

int checked_size(const char* name, std::int64_t value) {
  if (value < 1 || value > kMostRows) refuse(name, std::to_string(value) + " is not in 1 .. " + std::to_string(kMostRows));
  return static_cast<int>(value);
}

bool is_packed_width(int bits) { return std::find(std::begin(kWidths), std::end(kWidths), bits) != std::end(kWidths); }

int checked_bits(const std::string& name, int bits) {
  if (!is_packed_width(bits)) refuse(name, "width " + std::to_string(bits) + " is not one of 1, 2, 3, 4, 8");
  return bits;
}

int checked_group(int group) {
  if (group != 32 && group != 64 && group != 128) {
    refuse("group_size", std::to_string(group) + " is not one of 32, 64, 128");
  }
  return group;
}

int checked_threads(int threads) {
  if (threads < 1) refuse("threads", std::to_string(threads) + " is less than 1");
  return threads;
}

// An expert rounds twice in a row, and what the gate lets through has long tails: there one plane is not enough to stay
// within 1 % (docs/decisions/0007-int8-activations.md).
Run checked_run(const std::string& precision, int threads) {
  constexpr Rounding coarse{1, 128}, medium{1, 64}, fine{1, 32}, two_planes{2, 128};
  checked_threads(threads);
  if (precision == "int8") return {medium, fine, two_planes, threads};
  if (precision == "int8-single") return {coarse, coarse, coarse, threads};
  if (precision == "exact") return {kExact, kExact, kExact, threads};
  refuse("precision", "'" + precision + "' is not one of int8, int8-single and exact");
}

ActivationKind checked_kind(const std::string& kind) {
  if (kind == "silu") return ActivationKind::silu;
  if (kind == "gelu") return ActivationKind::gelu;
  if (kind == "gelu_tanh") return ActivationKind::gelu_tanh;
  if (kind == "relu") return ActivationKind::relu;
  if (kind == "swiglu_clamped") return ActivationKind::swiglu_clamped;
  refuse("activation", "unknown kind '" + kind + "'; known are silu, gelu, gelu_tanh, relu and swiglu_clamped");
}

// ---------------------------------------------------------------------------------------------------------------------
// linear

using Arrays = std::vector<Array>;

// Matrices of the same columns, width, group and grid, one beside the other.
void linear(const Array& x, const Arrays& blobs, const std::vector<std::optional<Array>>& biases,
            std::vector<Result> outs, const std::vector<std::int64_t>& rows, std::int64_t columns, int bits,
            int group_size, bool symmetric, const std::string& precision, int threads) {
  checked_size("columns", columns), checked_group(group_size), checked_bits("bits", bits);
  if (rows.empty() || rows.size() > 64) refuse("rows", "expected 1 to 64 matrices, found " + std::to_string(rows.size()));
  for (const auto& [name, count] : {std::pair{"blobs", blobs.size()}, {"biases", biases.size()}, {"outs", outs.size()}}) {
    if (count != rows.size()) refuse(name, "expected " + std::to_string(rows.size()) + ", found " + std::to_string(count));
  }
  const Rows input = checked_rows("x", x, columns);
  std::vector<LinearPart> parts;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    checked_size("rows", rows[i]);
    const auto size = static_cast<std::int64_t>(blob_bytes(rows[i], columns, bits, group_size, symmetric));
    const Matrix w = matrix_in(checked_blob("blob", blobs[i], {size}), rows[i], columns, bits, group_size, symmetric);
    parts.push_back({w, checked_bias("bias", biases[i], {rows[i]}), checked_result(outs[i], input, rows[i])});
  }
  const Run run = checked_run(precision, threads);
  const nb::gil_scoped_release release;
  if (input.rows > 0) run_linear(parts, input, run);
}

// ---------------------------------------------------------------------------------------------------------------------
// experts

Entry entry_of(const std::string& name, std::vector<int> widths, int matrices, int rows, int columns, int group,
               bool symmetric) {
  std::vector<int> places, counts(kStoredWidth + 1);
  for (int width : widths) {
    if (width != kStoredWidth) checked_bits(name, width);
    places.push_back(counts[width]++);
  }
  return {matrices, rows, columns, group, symmetric, std::move(widths), std::move(places)};
}

// The tensors of an entry, in ascending order of width.
Blobs checked_blobs(const std::string& name, const Entry& entry, const Arrays& tensors) {
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

// What is known of an expert layer without its weights. They come with every run: nothing here outlives a tensor.
class Layer {
 public:
  Layer(std::int64_t hidden, std::int64_t intermediate, bool gated, int group_size, bool symmetric,
        std::vector<int> gate_up_widths, std::vector<int> down_widths, const std::string& activation, float alpha,
        float limit) {
    layer_.hidden = checked_size("hidden", hidden);
    layer_.intermediate = checked_size("intermediate", intermediate);
    layer_.matrices = gated ? 2 : 1;
    layer_.activation = {checked_kind(activation), alpha, limit};
    if (layer_.activation.kind == ActivationKind::swiglu_clamped && !gated) {
      refuse("activation", "swiglu_clamped needs a gate");
    }
    checked_group(group_size);
    if (gate_up_widths.size() != down_widths.size()) refuse("down_widths", "not as many as gate_up_widths");
    layer_.gate_up = entry_of("gate_up_widths", std::move(gate_up_widths), layer_.matrices, layer_.intermediate,
                              layer_.hidden, group_size, symmetric);
    layer_.down = entry_of("down_widths", std::move(down_widths), 1, layer_.hidden, layer_.intermediate, group_size,
                           symmetric);
  }

  void run(const Array& x, const Array& index, const Array& weights, Result out, const Arrays& gate_up,
           const Arrays& down, const std::optional<Array>& gate_up_bias, const std::optional<Array>& down_bias,
           const std::string& precision, int threads) const {
    const Rows input = checked_rows("x", x, layer_.hidden);
    const Routes routes = checked_routes(index, weights, input.rows);
    void* result = checked_result(out, input, layer_.hidden);
    const Run run = checked_run(precision, threads);
    const std::int64_t experts = layer_.experts(), wide = std::int64_t{layer_.matrices} * layer_.intermediate;
    const LayerWeights packed{checked_blobs("gate_up", layer_.gate_up, gate_up), checked_blobs("down", layer_.down, down),
                              checked_bias("gate_up_bias", gate_up_bias, {experts, wide}),
                              checked_bias("down_bias", down_bias, {experts, layer_.hidden})};
    const nb::gil_scoped_release release;
    if (input.rows > 0) run_experts(layer_, packed, input, routes, result, run);
  }

 private:
  Routes checked_routes(const Array& index, const Array& weights, int tokens) const {
    if (index.ndim() != 2) refuse("index", "expected 2 dimensions, found shape " + text(shape_of(index)));
    const auto top_k = static_cast<std::int64_t>(index.shape(1));
    if (top_k > kMostRows / std::max(1, tokens)) refuse("index", "too many places: " + text(shape_of(index)));
    const auto* places = checked<std::int64_t>("index", index, {tokens, top_k}, "int64");
    const auto* shares = checked<float>("weights", weights, {tokens, top_k}, "float32");
    for (std::int64_t i = 0; i < tokens * top_k; ++i) {
      if (places[i] >= layer_.experts()) {
        refuse("index", "there is no expert " + std::to_string(places[i]) + " in a layer of " +
                            std::to_string(layer_.experts()) + "; -1 stands for no expert");
      }
      if (places[i] >= 0 && !layer_.is_packed(static_cast<int>(places[i]))) {
        refuse("index", "expert " + std::to_string(places[i]) + " is not packed (width 16)");
      }
    }
    return {places, shares, static_cast<int>(top_k)};
  }

  ExpertLayer layer_{};
};

// ---------------------------------------------------------------------------------------------------------------------
// not packed

void dense(const Array& x, const Array& weight, Result out, int threads) {
  if (weight.ndim() != 2) refuse("weight", "expected 2 dimensions, found shape " + text(shape_of(weight)));
  const int count = checked_size("weight", static_cast<std::int64_t>(weight.shape(0)));
  const int columns = checked_size("weight", static_cast<std::int64_t>(weight.shape(1)));
  const auto* bits = checked<std::uint16_t>("weight", weight, {count, columns}, "uint16, the bits of bfloat16");
  checked_threads(threads);
  const Rows input = checked_rows("x", x, columns);
  void* result = checked_result(out, input, count);
  const nb::gil_scoped_release release;
  if (input.rows > 0) run_dense(bits, count, columns, input, result, threads);
}

// ---------------------------------------------------------------------------------------------------------------------
// between the matrices

Norm checked_norm(const std::string& name, const std::optional<Array>& weight, std::int64_t columns, float epsilon,
                  float offset) {
  if (!weight) return {nullptr, DType::float32, 0, 0};
  const Bias found = checked_bias(name, weight, {columns});
  return {found.data, found.dtype, epsilon, offset};
}

void rms_norm(const Array& x, const Array& weight, Result out, float epsilon, float offset, int threads) {
  if (weight.ndim() != 1) refuse("weight", "expected 1 dimension, found shape " + text(shape_of(weight)));
  const int columns = checked_size("weight", static_cast<std::int64_t>(weight.shape(0)));
  const Norm norm = checked_norm("weight", weight, columns, epsilon, offset);
  const Rows input = checked_rows("x", x, columns);
  void* result = checked_result(out, input, columns);
  checked_threads(threads);
  const nb::gil_scoped_release release;
  if (input.rows > 0) run_rms_norm(input, columns, norm, result, threads);
}

void route(const Array& x, const Array& weight, const std::optional<Array>& logit_bias,
           const std::optional<Array>& choice_bias, Result logits, Result index, Result shares, bool sigmoid,
           bool normalises, std::int64_t groups, std::int64_t kept_groups, float scale, int threads) {
  if (weight.ndim() != 2) refuse("weight", "expected 2 dimensions, found shape " + text(shape_of(weight)));
  if (index.ndim() != 2) refuse("index", "expected 2 dimensions, found shape " + text(shape_of(index)));
  Router router{};
  router.experts = checked_size("weight", static_cast<std::int64_t>(weight.shape(0)));
  router.hidden = checked_size("weight", static_cast<std::int64_t>(weight.shape(1)));
  router.top_k = checked_size("index", static_cast<std::int64_t>(index.shape(1)));
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
  checked_threads(threads);
  const Rows input = checked_rows("x", x, router.hidden);
  if (input.rows > kMostRows / experts) refuse("x", "too many rows for so many experts");
  check_shape("logits", logits, {input.rows, experts});
  const DType dtype = float_dtype("logits", logits);
  check_memory("logits", logits, alignment_of(dtype));
  const Shape places{input.rows, router.top_k};
  auto* chosen = const_cast<std::int64_t*>(checked<std::int64_t>("index", Array(index), places, "int64"));
  auto* kept = const_cast<float*>(checked<float>("shares", Array(shares), places, "float32"));
  const nb::gil_scoped_release release;
  if (input.rows > 0) run_router(router, input, logits.data(), dtype, chosen, kept, threads);
}

// Rows of heads of `size` numbers: how many heads.
int checked_heads(const char* name, const Array& array, std::int64_t rows, std::int64_t size, DType dtype) {
  const auto count = static_cast<std::int64_t>(array.size());
  if (count < 1 || count > std::int64_t{kMostRows} * 64 || count % (rows * size)) {
    refuse(name, "expected " + std::to_string(rows) + " rows of heads of " + std::to_string(size) + ", found shape " + text(shape_of(array)));
  }
  if (float_dtype(name, array) != dtype) refuse(name, "expected another dtype: all have the same");
  check_memory(name, array, alignment_of(dtype));
  return checked_size(name, count / rows / size);
}

void rotate(Result queries, Result keys, const Array& cosines, const Array& sines,
            const std::optional<Array>& query_weight, const std::optional<Array>& key_weight, std::int64_t rows,
            std::int64_t size, float epsilon, float offset) {
  if (cosines.ndim() < 1) refuse("cosines", "expected a dimension or more");
  Rotation rotation{};
  checked_size("rows", rows);
  rotation.size = checked_size("size", size);
  rotation.rotated = checked_size("cosines", static_cast<std::int64_t>(cosines.shape(cosines.ndim() - 1)));
  if (rotation.rotated % 2 || rotation.rotated > rotation.size) {
    refuse("cosines", std::to_string(rotation.rotated) + " is odd or more than a head has");
  }
  const DType dtype = float_dtype("queries", queries);
  const int heads = checked_heads("queries", Array(queries), rows, size, dtype);
  const int shared = checked_heads("keys", Array(keys), rows, size, dtype);
  const auto of_rows = static_cast<std::int64_t>(cosines.size()) / rotation.rotated;
  if (of_rows != 1 && of_rows != rows) refuse("cosines", "expected one row or " + std::to_string(rows) + ", found shape " + text(shape_of(cosines)));
  checked_heads("cosines", cosines, of_rows, rotation.rotated, dtype);
  check_shape("sines", sines, shape_of(cosines));
  checked_heads("sines", sines, of_rows, rotation.rotated, dtype);
  rotation.cosines = cosines.data(), rotation.sines = sines.data(), rotation.is_common = of_rows == 1;
  rotation.query_norm = checked_norm("query_weight", query_weight, rotation.size, epsilon, offset);
  rotation.key_norm = checked_norm("key_weight", key_weight, rotation.size, epsilon, offset);
  const nb::gil_scoped_release release;
  run_rotate(dtype, static_cast<int>(rows), queries.data(), heads, keys.data(), shared, rotation);
}

// An array [rows][heads][count][size] whose heads may be apart from each other, the `count` of each one after the other.
void check_heads_apart(const char* name, const Array& array) {
  if (array.device_type() != nb::device::cpu::value) refuse(name, "must be in main memory (a CPU tensor)");
  if (array.size() == 0) return;
  const bool one_by_one = array.shape(3) == 1 || array.stride(3) == 1;
  const bool one_after_other = array.shape(2) == 1 || array.stride(2) == static_cast<std::int64_t>(array.shape(3));
  if (!one_by_one || !one_after_other || array.stride(0) < 0 || array.stride(1) < 0) {
    refuse(name, "the last two dimensions must be contiguous");
  }
  if (reinterpret_cast<std::uintptr_t>(array.data()) % alignment_of(float_dtype(name, array))) refuse(name, "misaligned");
}

void attend(const Array& queries, const Array& keys, const Array& values, const std::optional<Array>& seen, Result out,
            float scale, int threads) {
  if (keys.ndim() != 4) refuse("keys", "expected 4 dimensions, found shape " + text(shape_of(keys)));
  if (values.ndim() != 4) refuse("values", "expected 4 dimensions, found shape " + text(shape_of(values)));
  Attention a{};
  a.rows = checked_size("keys", static_cast<std::int64_t>(keys.shape(0)));
  a.shared = checked_size("keys", static_cast<std::int64_t>(keys.shape(1)));
  a.keys.count = checked_size("keys", static_cast<std::int64_t>(keys.shape(2)));
  a.keys.size = checked_size("keys", static_cast<std::int64_t>(keys.shape(3)));
  a.keys.value_size = checked_size("values", static_cast<std::int64_t>(values.shape(3)));
  a.keys.dtype = float_dtype("keys", keys);
  check_shape("values", values, {a.rows, a.shared, a.keys.count, a.keys.value_size});
  if (float_dtype("values", values) != a.keys.dtype) refuse("values", "expected the dtype of keys");
  check_heads_apart("keys", keys), check_heads_apart("values", values);
  a.key_row = keys.stride(0), a.key_head = keys.stride(1), a.value_row = values.stride(0), a.value_head = values.stride(1);
  a.heads = checked_heads("queries", queries, a.rows, a.keys.size, a.keys.dtype);
  if (a.heads % a.shared) refuse("keys", std::to_string(a.heads) + " heads cannot share " + std::to_string(a.shared));
  if (checked_heads("out", Array(out), a.rows, a.keys.value_size, a.keys.dtype) != a.heads) refuse("out", "not as many heads as queries");
  a.queries = queries.data(), a.keys.keys = keys.data(), a.keys.values = values.data(), a.keys.scale = scale;
  if (seen) a.keys.seen = checked<std::uint8_t>("seen", *seen, {a.rows, a.keys.count}, "uint8");
  checked_threads(threads);
  const nb::gil_scoped_release release;
  run_attend(a, out.data(), threads);
}

// ---------------------------------------------------------------------------------------------------------------------
// skipping

// Sizes follow from `candidates`, `project` and `experts`, and every other array has to fit them.
void mask_router(const Array& x, const Array& index, const Array& weights, Result out_index, Result out_weights,
                 const Array& candidates, const Array& project, const Array& inner, const Array& inner_bias,
                 const Array& outer, const Array& slope, const Array& bias, const std::optional<Array>& table,
                 const std::optional<Array>& prefer, std::int64_t experts, float cost, bool sees_hidden,
                 bool sees_weights, int threads) {
  for (const auto& [name, array] : {std::pair{"candidates", &candidates}, {"project", &project}}) {
    if (array->ndim() != 2) refuse(name, "expected 2 dimensions, found shape " + text(shape_of(*array)));
  }
  const std::int64_t masks = candidates.shape(0), places = candidates.shape(1), width = project.shape(0), hidden = project.shape(1);
  if (places < 1 || places > kMostPlaces) refuse("candidates", "places must be 1 .. " + std::to_string(kMostPlaces));
  for (const auto& [name, size] : {std::pair{"candidates", masks}, {"project", width}, {"project", hidden}}) checked_size(name, size);
  checked_size("experts", experts), checked_threads(threads);
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
  const Rows input = checked_rows("x", x, hidden);
  const Routes routes{checked<std::int64_t>("index", index, {input.rows, places}, "int64"),
                      floats("weights", weights, {input.rows, places}), router.places};
  for (std::int64_t i = 0; i < input.rows * places; ++i) {
    if (routes.index[i] < 0 || routes.index[i] >= experts) {
      refuse("index", "there is no expert " + std::to_string(routes.index[i]) + " in a layer of " + std::to_string(experts));
    }
  }
  auto* kept = const_cast<std::int64_t*>(checked<std::int64_t>("out_index", Array(out_index), {input.rows, places}, "int64"));
  auto* shares = const_cast<float*>(floats("out_weights", Array(out_weights), {input.rows, places}));
  const nb::gil_scoped_release release;
  if (input.rows > 0) run_mask_router(router, input, routes, kept, shares, threads);
}

// ---------------------------------------------------------------------------------------------------------------------
// instruction sets and ceilings

std::vector<std::string> isas_here() {
  std::vector<std::string> names;
  for (const char* const* name = known_isas(); *name; ++name) {
    if (isa_runs_here(*name)) names.push_back(*name);
  }
  return names;
}

double bandwidth(const Array& data, int times, int threads) {
  const auto* bytes = checked<std::uint8_t>("data", data, {static_cast<std::int64_t>(data.size())}, "uint8");
  checked_size("times", times);
  checked_threads(threads);
  const nb::gil_scoped_release release;
  return read_bandwidth(bytes, data.size(), times, threads);
}

double dot_rate(std::int64_t rounds, int threads) {
  checked_threads(threads);
  if (rounds < 1) refuse("rounds", "must be positive");
  const nb::gil_scoped_release release;
  return dot_product_rate(static_cast<std::uint64_t>(rounds), threads);
}

NB_MODULE(_cpu, m) {
  m.doc() = "Kernels on packed matrices for CPUs; moesaic.kernels.cpu is the way to call them.";
  m.def("linear", &linear, "x"_a.noconvert(), "blobs"_a.noconvert(), "biases"_a.noconvert(), "outs"_a.noconvert(),
        "rows"_a, "columns"_a, "bits"_a, "group_size"_a, "symmetric"_a, "precision"_a, "threads"_a,
        "out[rows of x, rows] = x W^T + bias, for matrices of the same columns and width");
  nb::class_<Layer>(m, "Layer", "One packed expert layer without its weights, which come with every run.")
      .def(nb::init<std::int64_t, std::int64_t, bool, int, bool, std::vector<int>, std::vector<int>, const std::string&,
                    float, float>(),
           "hidden"_a, "intermediate"_a, "gated"_a, "group_size"_a, "symmetric"_a, "gate_up_widths"_a, "down_widths"_a,
           "activation"_a, "alpha"_a, "limit"_a)
      .def("run", &Layer::run, "x"_a.noconvert(), "index"_a.noconvert(), "weights"_a.noconvert(), "out"_a.noconvert(),
           "gate_up"_a.noconvert(), "down"_a.noconvert(), "gate_up_bias"_a.noconvert().none(),
           "down_bias"_a.noconvert().none(), "precision"_a, "threads"_a,
           "out = the weighted sum of every token's experts; tensors of an entry in ascending order of width");
  m.def("dense", &dense, "x"_a.noconvert(), "weight"_a.noconvert(), "out"_a.noconvert(), "threads"_a,
        "out[rows of x, rows of weight] = x weight^T, with a weight that is not packed: uint16, the bits of bfloat16");
  m.def("rms_norm", &rms_norm, "x"_a.noconvert(), "weight"_a.noconvert(), "out"_a.noconvert(), "epsilon"_a, "offset"_a,
        "threads"_a, "out = x / sqrt(mean of squares + epsilon) * (weight + offset), row by row");
  m.def("route", &route, "x"_a.noconvert(), "weight"_a.noconvert(), "logit_bias"_a.noconvert().none(),
        "choice_bias"_a.noconvert().none(), "logits"_a.noconvert(), "index"_a.noconvert(), "shares"_a.noconvert(),
        "sigmoid"_a, "normalises"_a, "groups"_a, "kept_groups"_a, "scale"_a, "threads"_a,
        "The experts of every token, best first, and their shares.");
  m.def("rotate", &rotate, "queries"_a.noconvert(), "keys"_a.noconvert(), "cosines"_a.noconvert(), "sines"_a.noconvert(),
        "query_weight"_a.noconvert().none(), "key_weight"_a.noconvert().none(), "rows"_a, "size"_a, "epsilon"_a, "offset"_a,
        "Norms of the heads and rotary embedding, in place.");
  m.def("attend", &attend, "queries"_a.noconvert(), "keys"_a.noconvert(), "values"_a.noconvert(),
        "seen"_a.noconvert().none(), "out"_a.noconvert(), "scale"_a, "threads"_a,
        "Attention of one token of every row to keys and values that are there already.");
  m.def("mask_router", &mask_router, "x"_a.noconvert(), "index"_a.noconvert(), "weights"_a.noconvert(),
        "out_index"_a.noconvert(), "out_weights"_a.noconvert(), "candidates"_a.noconvert(), "project"_a.noconvert(),
        "inner"_a.noconvert(), "inner_bias"_a.noconvert(), "outer"_a.noconvert(), "slope"_a.noconvert(),
        "bias"_a.noconvert(), "table"_a.noconvert().none(), "prefer"_a.noconvert().none(), "experts"_a, "cost"_a,
        "sees_hidden"_a, "sees_weights"_a, "threads"_a, "What OTP leaves of every token's places, by weight.");
  m.def("isa", [] { return std::string(kernels().name); }, "The instruction set in use.");
  m.def("isas", &isas_here, "The instruction sets that this build and this CPU have, best first.");
  m.def("use_isa", [](const std::string& name) { use_isa(name.c_str()); }, "name"_a,
        "Switch the instruction set; the empty string goes back to MOESAIC_CPU_ISA or the best one.");
  m.def("use_own_threads", &use_own_threads, "own"_a,
        "Whether to leave torch's threads alone and work on threads of the module's own.");
  m.def("read_bandwidth", &bandwidth, "data"_a.noconvert(), "times"_a, "threads"_a, "Bytes per second of reading.");
  m.def("dot_product_rate", &dot_rate, "rounds"_a, "threads"_a, "int8 multiply-adds per second on registers.");
}

}  // namespace
}  // namespace moesaic
