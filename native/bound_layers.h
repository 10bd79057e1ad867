// Objects that Python holds: an expert layer without its weights, and a whole decoder layer with them.

#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checks.h"
#include "decoder_layer.h"
#include "layer.h"

namespace moesaic {

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
    const LayerWeights packed = checked_weights(gate_up, down, gate_up_bias, down_bias);
    const nb::gil_scoped_release release;
    if (input.rows > 0) run_experts(layer_, packed, input, routes, result, run);
  }

  const ExpertLayer& layer() const { return layer_; }

  LayerWeights checked_weights(const Arrays& gate_up, const Arrays& down, const std::optional<Array>& gate_up_bias,
                               const std::optional<Array>& down_bias) const {
    const std::int64_t experts = layer_.experts(), wide = std::int64_t{layer_.matrices} * layer_.intermediate;
    return {checked_blobs("gate_up", layer_.gate_up, gate_up), checked_blobs("down", layer_.down, down),
            checked_bias("gate_up_bias", gate_up_bias, {experts, wide}),
            checked_bias("down_bias", down_bias, {experts, layer_.hidden})};
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


// A decoder layer with all its weights, which it holds on to: whoever made it makes another when they change.
class DecoderLayerObject {
 public:
  // The part up to the norm before the experts. `blobs` are the matrices of queries, keys, values and the output.
  DecoderLayerObject(std::int64_t hidden, std::int64_t heads, std::int64_t shared, std::int64_t size, int group_size,
                     bool symmetric, int bits, const Array& attention_norm, const Array& experts_norm, float epsilon,
                     float offset, const Arrays& blobs, const std::vector<std::optional<Array>>& biases,
                     const std::optional<Array>& query_norm, const std::optional<Array>& key_norm, bool joins_heads,
                     float head_epsilon, float head_offset, float scale) {
    held_ = blobs;
    hold({attention_norm, experts_norm, query_norm, key_norm}), hold(biases);
    layer_.hidden = checked_size("hidden", hidden), layer_.size = checked_size("size", size);
    layer_.heads = checked_size("heads", heads), layer_.shared = checked_size("shared", shared);
    if (heads % shared) refuse("shared", std::to_string(heads) + " heads cannot share " + std::to_string(shared));
    if (heads * size > kMostRows) refuse("heads", "too many of this size");
    checked_group(group_size), checked_bits("bits", bits);
    if (blobs.size() != 4) refuse("blobs", "expected 4, found " + std::to_string(blobs.size()));
    if (biases.size() != 4) refuse("biases", "expected 4, found " + std::to_string(biases.size()));
    const std::int64_t rows[] = {heads * size, shared * size, shared * size, hidden};
    for (int i = 0; i < 4; ++i) {
      const std::int64_t columns = i == 3 ? heads * size : hidden;
      const auto bytes = static_cast<std::int64_t>(blob_bytes(rows[i], columns, bits, group_size, symmetric));
      layer_.matrices[i] = matrix_in(checked_blob("blobs", blobs[i], {bytes}), rows[i], columns, bits, group_size, symmetric);
      layer_.biases[i] = checked_bias("biases", biases[i], {rows[i]});
    }
    layer_.attention_norm = checked_norm("attention_norm", attention_norm, hidden, epsilon, offset);
    layer_.experts_norm = checked_norm("experts_norm", experts_norm, hidden, epsilon, offset);
    if (query_norm.has_value() != key_norm.has_value()) refuse("key_norm", "query_norm and key_norm come together");
    layer_.joins_heads = joins_heads && query_norm;
    const std::int64_t joined_heads = joins_heads ? heads : 1, joined_shared = joins_heads ? shared : 1;
    layer_.query_norm = checked_norm("query_norm", query_norm, joined_heads * size, head_epsilon, head_offset);
    layer_.key_norm = checked_norm("key_norm", key_norm, joined_shared * size, head_epsilon, head_offset);
    layer_.scale = scale;
  }

  // Goes on with these experts. `layer` has to live as long as this does.
  void set_experts(const Layer& layer, const Arrays& gate_up, const Arrays& down, const std::optional<Array>& gate_up_bias,
                   const std::optional<Array>& down_bias, const Array& router, const std::optional<Array>& logit_bias,
                   const std::optional<Array>& choice_bias, std::int64_t top_k, bool sigmoid, bool normalises,
                   std::int64_t groups, std::int64_t kept_groups, float scale, bool rounds_logits) {
    const ExpertLayer& experts = layer.layer();
    if (experts.hidden != layer_.hidden) refuse("layer", "has another number of hidden features");
    for (int expert = 0; expert < experts.experts(); ++expert) {
      if (!experts.is_packed(expert)) refuse("layer", "expert " + std::to_string(expert) + " is not packed (width 16)");
    }
    const Router chooses =
        checked_router(router, logit_bias, choice_bias, top_k, sigmoid, normalises, groups, kept_groups, scale);
    if (chooses.experts != experts.experts() || chooses.hidden != layer_.hidden) refuse("router", "does not fit the layer");
    const LayerWeights weights = layer.checked_weights(gate_up, down, gate_up_bias, down_bias);
    layer_.experts = &experts, layer_.router = chooses, layer_.weights = weights, layer_.rounds_logits = rounds_logits;
    layer_.mask_router = nullptr;
    held_.insert(held_.end(), gate_up.begin(), gate_up.end()), held_.insert(held_.end(), down.begin(), down.end());
    hold({gate_up_bias, down_bias, router, logit_bias, choice_bias});
  }

  // Lets this decide which of the chosen experts run.
  void set_mask_router(const Array& candidates, const Array& project, const Array& inner, const Array& inner_bias,
                       const Array& outer, const Array& slope, const Array& bias, const std::optional<Array>& table,
                       const std::optional<Array>& prefer, float cost, bool sees_hidden, bool sees_weights) {
    if (!layer_.experts) refuse("candidates", "there are no experts to choose from: set them first");
    const MaskRouter router = checked_mask_router({candidates, project, inner, inner_bias, outer, slope, bias, table, prefer},
                                                  layer_.router.experts, cost, sees_hidden, sees_weights);
    if (router.places != layer_.router.top_k) refuse("candidates", "expected " + std::to_string(layer_.router.top_k) + " places");
    if (router.hidden != layer_.hidden) refuse("project", "expected " + std::to_string(layer_.hidden) + " columns");
    mask_router_ = router, layer_.mask_router = &mask_router_;
    hold({candidates, project, inner, inner_bias, outer, slope, bias, table, prefer});
  }

  void clear_mask_router() { layer_.mask_router = nullptr; }

  // A token of every row. With `normed`, the step ends before the experts.
  void run(const Array& x, const Array& cosines, const Array& sines, Result keys, Result values, std::int64_t used,
           const std::optional<Array>& seen, Result out, std::optional<Result> normed, const std::string& precision,
           int threads) const {
    DecoderStep step = checked_step(x, cosines, sines, used, seen, out);
    if (normed) step.normed = checked_result(*normed, step.x, layer_.hidden);
    if (!normed && !layer_.experts) refuse("normed", "is needed where no experts are set");
    step.keys = room("keys", keys, step), step.values = room("values", values, step);
    const Run run = checked_run(precision, threads);
    const nb::gil_scoped_release release;
    run_decoder_layer(layer_, step, run);
  }

  // The same through several layers, one after the other.
  static void run_all(const std::vector<const DecoderLayerObject*>& layers, const Array& x, const Array& cosines,
                      const Array& sines, std::vector<Result> keys, std::vector<Result> values, std::int64_t used,
                      const std::optional<Array>& seen, Result out, const std::string& precision, int threads) {
    if (layers.empty()) refuse("layers", "expected one or more");
    if (keys.size() != layers.size()) refuse("keys", "expected as many as layers");
    if (values.size() != layers.size()) refuse("values", "expected as many as layers");
    std::vector<DecoderStep> steps;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (!layers[i]) refuse("layers", "expected layers, found None");
      const DecoderLayerObject& layer = *layers[i];
      if (!layer.layer_.experts) refuse("layers", "one of them has no experts");
      DecoderStep step = layer.checked_step(x, cosines, sines, used, seen, out);
      step.keys = layer.room("keys", keys[i], step), step.values = layer.room("values", values[i], step);
      if (i > 0) step.x.data = step.out;
      steps.push_back(step);
    }
    const Run run = checked_run(precision, threads);
    const nb::gil_scoped_release release;
    for (std::size_t i = 0; i < layers.size(); ++i) run_decoder_layer(layers[i]->layer_, steps[i], run);
  }

 private:
  static constexpr int kMostSequences = 64;

  // All but the rooms.
  DecoderStep checked_step(const Array& x, const Array& cosines, const Array& sines, std::int64_t used,
                           const std::optional<Array>& seen, Result& out) const {
    DecoderStep step{};
    step.x = checked_rows("x", x, layer_.hidden);
    if (step.x.dtype == DType::float32) refuse("x", "expected bfloat16 or float16");
    if (step.x.rows < 1 || step.x.rows > kMostSequences) refuse("x", "expected 1 to " + std::to_string(kMostSequences) + " rows");
    step.out = checked_result(out, step.x, layer_.hidden);
    if (cosines.ndim() < 1) refuse("cosines", "expected a dimension or more");
    step.rotated = checked_size("cosines", static_cast<std::int64_t>(cosines.shape(cosines.ndim() - 1)));
    if (step.rotated % 2 || step.rotated > layer_.size) refuse("cosines", std::to_string(step.rotated) + " is odd or more than a head has");
    const auto of_rows = static_cast<std::int64_t>(cosines.size()) / step.rotated;
    if (of_rows != 1 && of_rows != step.x.rows) refuse("cosines", "expected one row or as many as x, found shape " + text(shape_of(cosines)));
    checked_heads("cosines", cosines, of_rows, step.rotated, step.x.dtype);
    check_shape("sines", sines, shape_of(cosines));
    checked_heads("sines", sines, of_rows, step.rotated, step.x.dtype);
    step.cosines = cosines.data(), step.sines = sines.data(), step.is_common = of_rows == 1;
    if (used < 0 || used >= kMostRows) refuse("used", std::to_string(used) + " is not in 0 .. " + std::to_string(kMostRows - 1));
    step.used = static_cast<int>(used);
    if (seen) step.seen = checked<std::uint8_t>("seen", *seen, {step.x.rows, used + 1}, "uint8");
    return step;
  }

  // [rows][shared][room][size], with a place for one token more.
  Room room(const char* name, Result& array, const DecoderStep& step) const {
    if (array.ndim() != 4) refuse(name, "expected 4 dimensions, found shape " + text(shape_of(array)));
    const auto tokens = static_cast<std::int64_t>(array.shape(2));
    check_shape(name, array, {step.x.rows, layer_.shared, tokens, layer_.size});
    if (step.used >= tokens) refuse(name, "no room for token " + std::to_string(step.used) + " in " + std::to_string(tokens));
    if (float_dtype(name, array) != step.x.dtype) refuse(name, "expected the dtype of x");
    check_heads_apart(name, Array(array));
    // heads that overlap would be written over each other
    const std::int64_t head = tokens * layer_.size, row = array.stride(0), next = array.stride(1);
    if ((layer_.shared > 1 && next < head) || (step.x.rows > 1 && row < (layer_.shared - 1) * next + head)) refuse(name, "heads overlap");
    return {array.data(), row, next};
  }

  void hold(const std::vector<std::optional<Array>>& arrays) {
    for (const auto& array : arrays) {
      if (array) held_.push_back(*array);
    }
  }

  Arrays held_;
  DecoderLayer layer_{};
  MaskRouter mask_router_{};
};

}  // namespace moesaic
