// The Python face: checks every argument, names the one that is wrong, releases the GIL and runs.
//
// Arrays come in as they are (no conversion, no copy); `cpu.py` has the friendly signatures.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>

#include "attention.h"
#include "bound_layers.h"
#include "checks.h"
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

// ---------------------------------------------------------------------------------------------------------------------
// linear

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
  if (index.ndim() != 2) refuse("index", "expected 2 dimensions, found shape " + text(shape_of(index)));
  const auto top_k = static_cast<std::int64_t>(index.shape(1));
  const Router router = checked_router(weight, logit_bias, choice_bias, top_k, sigmoid, normalises, groups, kept_groups, scale);
  checked_threads(threads);
  const Rows input = checked_rows("x", x, router.hidden);
  if (input.rows > kMostRows / router.experts) refuse("x", "too many rows for so many experts");
  check_shape("logits", logits, {input.rows, router.experts});
  const DType dtype = float_dtype("logits", logits);
  check_memory("logits", logits, alignment_of(dtype));
  const Shape places{input.rows, router.top_k};
  auto* chosen = const_cast<std::int64_t*>(checked<std::int64_t>("index", Array(index), places, "int64"));
  auto* kept = const_cast<float*>(checked<float>("shares", Array(shares), places, "float32"));
  const nb::gil_scoped_release release;
  if (input.rows > 0) run_router(router, input, logits.data(), dtype, chosen, kept, threads);
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

void mask_router(const Array& x, const Array& index, const Array& weights, Result out_index, Result out_weights,
                 const Array& candidates, const Array& project, const Array& inner, const Array& inner_bias,
                 const Array& outer, const Array& slope, const Array& bias, const std::optional<Array>& table,
                 const std::optional<Array>& prefer, std::int64_t experts, float cost, bool sees_hidden,
                 bool sees_weights, int threads) {
  const MaskRouter router = checked_mask_router({candidates, project, inner, inner_bias, outer, slope, bias, table, prefer},
                                                experts, cost, sees_hidden, sees_weights);
  checked_threads(threads);
  const std::int64_t places = router.places;
  const Rows input = checked_rows("x", x, router.hidden);
  const Routes routes{checked<std::int64_t>("index", index, {input.rows, places}, "int64"),
                      checked<float>("weights", weights, {input.rows, places}, "float32"), router.places};
  for (std::int64_t i = 0; i < input.rows * places; ++i) {
    if (routes.index[i] < 0 || routes.index[i] >= experts) {
      refuse("index", "there is no expert " + std::to_string(routes.index[i]) + " in a layer of " + std::to_string(experts));
    }
  }
  auto* kept = const_cast<std::int64_t*>(checked<std::int64_t>("out_index", Array(out_index), {input.rows, places}, "int64"));
  auto* shares = const_cast<float*>(checked<float>("out_weights", Array(out_weights), {input.rows, places}, "float32"));
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
  nb::set_leak_warnings(false);  // models that are alive when the process ends are no leaks
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
  nb::class_<DecoderLayerObject>(m, "DecoderLayer", "A decoder layer for single tokens, with its weights.")
      .def(nb::init<std::int64_t, std::int64_t, std::int64_t, std::int64_t, int, bool, int, const Array&, const Array&, float,
                    float, const Arrays&, const std::vector<std::optional<Array>>&, const std::optional<Array>&,
                    const std::optional<Array>&, bool, float, float, float>(),
           "hidden"_a, "heads"_a, "shared"_a, "size"_a, "group_size"_a, "symmetric"_a, "bits"_a,
           "attention_norm"_a.noconvert(), "experts_norm"_a.noconvert(), "epsilon"_a, "offset"_a, "blobs"_a.noconvert(),
           "biases"_a.noconvert(), "query_norm"_a.noconvert().none(), "key_norm"_a.noconvert().none(), "joins_heads"_a, "head_epsilon"_a,
           "head_offset"_a, "scale"_a)
      .def("set_experts", &DecoderLayerObject::set_experts, nb::keep_alive<1, 2>(), "layer"_a, "gate_up"_a.noconvert(),
           "down"_a.noconvert(), "gate_up_bias"_a.noconvert().none(), "down_bias"_a.noconvert().none(),
           "router"_a.noconvert(), "logit_bias"_a.noconvert().none(), "choice_bias"_a.noconvert().none(), "top_k"_a,
           "sigmoid"_a, "normalises"_a, "groups"_a, "kept_groups"_a, "scale"_a, "rounds_logits"_a,
           "Go on with these experts and their router.")
      .def("set_mask_router", &DecoderLayerObject::set_mask_router, "candidates"_a.noconvert(), "project"_a.noconvert(),
           "inner"_a.noconvert(), "inner_bias"_a.noconvert(), "outer"_a.noconvert(), "slope"_a.noconvert(),
           "bias"_a.noconvert(), "table"_a.noconvert().none(), "prefer"_a.noconvert().none(), "cost"_a, "sees_hidden"_a,
           "sees_weights"_a, "Let OTP decide which of the chosen experts run.")
      .def("clear_mask_router", &DecoderLayerObject::clear_mask_router, "Let all chosen experts run.")
      .def("run", &DecoderLayerObject::run, "x"_a.noconvert(), "cosines"_a.noconvert(), "sines"_a.noconvert(),
           "keys"_a.noconvert(), "values"_a.noconvert(), "used"_a, "seen"_a.noconvert().none(), "out"_a.noconvert(),
           "normed"_a.noconvert().none(), "precision"_a, "threads"_a,
           "A token of every row; keys and values have room for it. With normed, the step ends before the experts.");
  m.def("run_layers", &DecoderLayerObject::run_all, "layers"_a, "x"_a.noconvert(), "cosines"_a.noconvert(),
        "sines"_a.noconvert(), "keys"_a.noconvert(), "values"_a.noconvert(), "used"_a, "seen"_a.noconvert().none(),
        "out"_a.noconvert(), "precision"_a, "threads"_a, "A token of every row through several decoder layers.");
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
  m.def("environment", [](const char* name) -> std::optional<std::string> {
    const char* value = std::getenv(name);
    return value ? std::optional<std::string>(value) : std::nullopt;
  }, "name"_a, "A variable of the environment, twenty times faster than Python looks it up; None where it is not set.");
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
