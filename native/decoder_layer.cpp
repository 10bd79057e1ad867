#include "decoder_layer.h"

#include <cstring>
#include <vector>

#include "prepared.h"

namespace moesaic {
namespace {

std::size_t item_bytes(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// Memory of the thread that calls, cut into pieces on cache-line borders; it keeps its pages from call to call.
class Scratch {
 public:
  // How much there is to cut: the sum of `rounded` of all pieces.
  explicit Scratch(std::size_t bytes) {
    thread_local Buffer memory;
    next_ = memory.reserve(bytes);
  }

  static std::size_t rounded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

  std::byte* cut(std::size_t bytes) {
    std::byte* piece = next_;
    next_ += rounded(bytes);
    return piece;
  }

 private:
  std::byte* next_;
};

// What lies between the operations.
struct Between {
  Between(const DecoderLayer& l, const DecoderStep& s)
      : item(item_bytes(s.x.dtype)),
        wide(item * s.x.rows * l.hidden),
        queries_size(item * s.x.rows * l.heads * l.size),
        keys_size(item * s.x.rows * l.shared * l.size),
        pieces(2 * Scratch::rounded(wide) + 2 * Scratch::rounded(queries_size) + 2 * Scratch::rounded(keys_size) +
               2 * Scratch::rounded(sizeof(float) * s.x.rows * l.hidden)),
        normed(pieces.cut(wide)),
        made(pieces.cut(wide)),
        queries(pieces.cut(queries_size)),
        attended(pieces.cut(queries_size)),
        keys(pieces.cut(keys_size)),
        values(pieces.cut(keys_size)) {
    for (float*& sum : sums) sum = reinterpret_cast<float*>(pieces.cut(sizeof(float) * s.x.rows * l.hidden));
  }

  std::size_t item, wide, queries_size, keys_size;
  Scratch pieces;
  std::byte *normed, *made, *queries, *attended, *keys, *values;
  float* sums[2];
};

// out = x + made; `out` may be x.
void add(const Rows& x, const void* base, const Between& b, int hidden, void* out) {
  const int count = x.rows * hidden;
  kernels().to_float(x.dtype, base, b.sums[0], count);
  kernels().to_float(x.dtype, b.made, b.sums[1], count);
  for (int i = 0; i < count; ++i) b.sums[0][i] += b.sums[1][i];
  kernels().from_float(x.dtype, b.sums[0], out, count);
}

// Puts the new token's keys or values, [rows][shared][size], behind the others.
void append(const DecoderLayer& l, const DecoderStep& s, const Room& room, const std::byte* made) {
  const std::size_t item = item_bytes(s.x.dtype), head_bytes = item * l.size;
  for (int row = 0; row < s.x.rows; ++row) {
    for (int head = 0; head < l.shared; ++head) {
      const std::ptrdiff_t at = row * room.row + head * room.head + std::ptrdiff_t{s.used} * l.size;
      std::memcpy(static_cast<std::byte*>(room.data) + at * static_cast<std::ptrdiff_t>(item),
                  made + (std::size_t(row) * l.shared + head) * head_bytes, head_bytes);
    }
  }
}

void attend(const DecoderLayer& l, const DecoderStep& s, Between& b, const Run& run) {
  const DType dtype = s.x.dtype;
  run_rms_norm(s.x, l.hidden, l.attention_norm, b.normed, run.threads);
  run_linear({{l.matrices[0], l.biases[0], b.queries}, {l.matrices[1], l.biases[1], b.keys}, {l.matrices[2], l.biases[2], b.values}},
             {b.normed, dtype, s.x.rows}, run);
  Rotation rotation{s.cosines, s.sines, s.is_common, l.size, s.rotated, l.query_norm, l.key_norm};
  if (l.joins_heads) {
    run_rms_norm({b.queries, dtype, s.x.rows}, l.heads * l.size, l.query_norm, b.queries, run.threads);
    run_rms_norm({b.keys, dtype, s.x.rows}, l.shared * l.size, l.key_norm, b.keys, run.threads);
    rotation.query_norm = rotation.key_norm = {nullptr, DType::float32, 0, 0};
  }
  run_rotate(dtype, s.x.rows, b.queries, l.heads, b.keys, l.shared, rotation);
  append(l, s, s.keys, b.keys);
  append(l, s, s.values, b.values);
  const Keys keys{s.keys.data, s.values.data, dtype, s.seen, s.used + 1, l.size, l.size, l.scale};
  run_attend({s.x.rows, l.heads, l.shared, b.queries, keys, s.keys.row, s.keys.head, s.values.row, s.values.head}, b.attended,
             run.threads);
  run_linear({{l.matrices[3], l.biases[3], b.made}}, {b.attended, dtype, s.x.rows}, run);
  add(s.x, s.x.data, b, l.hidden, s.out);
}

void run_chosen(const DecoderLayer& l, const DecoderStep& s, Between& b, const Run& run) {
  const Rows x{b.normed, s.x.dtype, s.x.rows};
  const std::size_t places = std::size_t(x.rows) * l.router.top_k;
  std::vector<std::int64_t> index(places), kept(places);
  std::vector<float> logits(std::size_t(x.rows) * l.router.experts), shares(places), weights(places);
  run_router(l.router, x, logits.data(), l.rounds_logits ? s.x.dtype : DType::float32, index.data(), shares.data(), run.threads);
  Routes routes{index.data(), shares.data(), l.router.top_k};
  if (l.mask_router) {
    run_mask_router(*l.mask_router, x, routes, kept.data(), weights.data(), run.threads);
    routes = {kept.data(), weights.data(), l.router.top_k};
  }
  run_experts(*l.experts, l.weights, x, routes, b.made, run);
  add(s.x, s.out, b, l.hidden, s.out);
}

}  // namespace

void run_decoder_layer(const DecoderLayer& layer, const DecoderStep& step, Run run) {
  Between between(layer, step);
  attend(layer, step, between, run);
  const Rows sum{step.out, step.x.dtype, step.x.rows};
  void* normed = step.normed ? step.normed : between.normed;
  run_rms_norm(sum, layer.hidden, layer.experts_norm, normed, run.threads);
  if (!step.normed) run_chosen(layer, step, between, run);
}

}  // namespace moesaic
