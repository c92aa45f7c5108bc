// Softmax attention where each query reads a range of keys, forward and backward, in float32.
//
// A tile of queries meets a chunk of keys at a time; logits and weights stay in the cache. All
// products are one micro-kernel on packed rows. See compiled_attention.py for what is computed.
//
// Letters: n rows, t queries, s keys, h heads, g heads of keys, k width of a head, m distances.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "compiled.h"

namespace {

constexpr int kPanel = 4 * kLanes;  // keys side by side in a panel of the transposed keys
constexpr int kTile = 64;           // queries of a tile
constexpr int kChunk = 256;         // keys that a tile meets at a time
constexpr int64_t kDeep = 64;       // keys of a product at a time, whose rows fit the nearest cache
constexpr int kRow = kChunk + 16;   // floats between rows of logits: not a power of two apart
constexpr int kPad = 256;           // around the biases, for keys beside the window
static_assert(kPad >= kTile + kPanel);
constexpr float kFloor = -1000.0f;  // as tiles.FLOOR
constexpr float kMasked = -1e9f;    // as tiles.MASKED

inline float sum(Vec v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// exp(x) for x <= 0 or little above; 0 below -87.
inline Vec exponential(Vec x) {
  const Vec magic = all(12582912.0f);
  Vec n = (x * 1.44269504f + magic) - magic;
  Vec f = x * 1.44269504f - n;
  f += x * 1.92596299e-8f;
  Vec p = all(1.54035304e-4f);
  p = p * f + 1.33335581e-3f;
  p = p * f + 9.61812911e-3f;
  p = p * f + 5.55041087e-2f;
  p = p * f + 2.40226507e-1f;
  p = p * f + 6.93147181e-1f;
  p = p * f + 1.0f;
  Int scale = (__builtin_convertvector(n, Int) + 127) << 23;
  Vec result = p * reinterpret_cast<Vec&>(scale);
  return x < all(-87.0f) ? all(0.0f) : result;
}

struct Sizes {
  int64_t n, t, s, h, g, k, m, offset;
  bool masked;
  int64_t wide() const { return (k + kLanes - 1) / kLanes * kLanes; }
  int64_t panels() const { return (s + kPanel - 1) / kPanel; }
  int64_t keys() const { return panels() * kPanel; }
};

// Rows [count, k], `stride` floats apart, to rows of `wide` floats; zeros fill those up to `padded`
// and what is beside them.
void pack_rows(const float* x, int64_t stride, int64_t count, int64_t padded, const Sizes& z,
               float* rows) {
  const int64_t wide = z.wide();
  for (int64_t i = 0; i < padded; ++i) {
    const int64_t used = i < count ? z.k : 0;
    if (used) std::memcpy(rows + i * wide, x + i * stride, used * sizeof(float));
    if (used < wide) std::memset(rows + i * wide + used, 0, (wide - used) * sizeof(float));
  }
}

void unpack_rows(const float* rows, int64_t count, const Sizes& z, float* x, int64_t stride) {
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(x + i * stride, rows + i * z.wide(), z.k * sizeof(float));
}

// Keys [s, k], `stride` floats apart, to panels [panels][k][kPanel].
void pack_panels(const float* x, int64_t stride, const Sizes& z, float* panels) {
  for (int64_t j = 0; j < z.keys(); j += kLanes) {
    float* to = panels + j / kPanel * kPanel * z.k + j % kPanel;
    for (int64_t c = 0; c < z.k; c += kLanes) {
      Vec rows[kLanes] = {};
      const int64_t width = std::min<int64_t>(kLanes, z.k - c);
      const int64_t count = std::min<int64_t>(kLanes, z.s - j);
      if (width == kLanes && count == kLanes)
        for (int i = 0; i < kLanes; ++i) rows[i] = load(x + (j + i) * stride + c);
      else
        for (int64_t i = 0; i < count; ++i)
          std::memcpy(rows + i, x + (j + i) * stride + c, width * sizeof(float));
      transpose(rows);
      for (int64_t i = 0; i < width; ++i) store(to + (c + i) * kPanel, rows[i]);
    }
  }
}

void pack_mask(const float* mask, int64_t row, const Sizes& z, float* masks) {
  if (!z.masked) return;
  std::memcpy(masks, mask + row * z.s, z.s * sizeof(float));
  std::fill(masks + z.s, masks + z.keys(), kMasked);
}

// What the queries of a tile see.
struct Tile {
  int64_t start, count, low, high;   // queries; keys [low, high), whole panels
  int64_t from[kTile], to[kTile];    // keys [from, to) of each query
  int64_t all_from = 0, all_to = 0;  // keys that all of them see

  Tile(const Sizes& z, const int32_t* first, const int32_t* last, int64_t start)
      : start(start), count(std::min<int64_t>(kTile, z.t - start)) {
    int64_t least = z.s, most = 0;
    all_to = z.s;
    for (int64_t i = 0; i < count; ++i) {
      from[i] = std::max<int64_t>(first[start + i], 0);
      to[i] = std::min<int64_t>(int64_t{last[start + i]} + 1, z.s);
      if (z.m) {  // no further than there are biases
        from[i] = std::max(from[i], start + i + z.offset - z.m + 1);
        to[i] = std::min(to[i], start + i + z.offset + 1);
      }
      if (from[i] < to[i]) least = std::min(least, from[i]), most = std::max(most, to[i]);
      all_from = std::max(all_from, from[i]);
      all_to = std::min(all_to, to[i]);
    }
    low = least / kPanel * kPanel;
    high = (most + kPanel - 1) / kPanel * kPanel;
  }

  // Chunks of about equal size, in whole panels.
  int64_t chunk() const {
    const int64_t panels = (high - low) / kPanel, most = kChunk / kPanel;
    const int64_t number = (panels + most - 1) / most;
    return number ? (panels + number - 1) / number * kPanel : kPanel;
  }
};

// Logits [count, width] of keys [j, j + width), the unseen ones masked.
void logits(const Sizes& z, const Tile& tile, const float* q, const float* panels,
            const float* bias, const float* mask, int64_t j, int64_t width, float* out) {
  for (int64_t p = 0; p < width; p += kPanel)
    product(tile.count, kPanel, z.k, q, z.wide(), 1, panels + (j + p) * z.k, kPanel, out + p,
            kRow, false);
  const bool whole = tile.all_from <= j && j + width <= tile.all_to;
  if (whole && !z.m && !z.masked) return;
  Int lane;
  for (int c = 0; c < kLanes; ++c) lane[c] = c;
  for (int64_t i = 0; i < tile.count; ++i) {
    float* row = out + i * kRow;
    // At place j - i - offset + m - 1 lies the bias of the distance i + offset - j.
    if (z.m) {
      const float* of = bias + kPad + j - (tile.start + i) - z.offset + z.m - 1;
      for (int64_t c = 0; c < width; c += kLanes) store(row + c, load(row + c) + load(of + c));
    }
    if (z.masked)
      for (int64_t c = 0; c < width; c += kLanes)
        store(row + c, load(row + c) + load(mask + j + c));
    if (whole) continue;
    const int32_t from = tile.from[i] - j, to = tile.to[i] - j;
    for (int64_t c = 0; c < width; c += kLanes) {
      if (from <= c && c + kLanes <= to) continue;
      const Int place = lane + static_cast<int32_t>(c);
      const Int seen = (place >= from) & (place < to);
      store(row + c, seen ? load(row + c) : all(kMasked));
    }
  }
}

void forward(const Sizes& z, int64_t row, int64_t group, const float* q, const float* k,
             const float* v, const int32_t* first, const int32_t* last, const float* bias,
             const float* mask, float* out, float* top) {
  const int64_t wide = z.wide(), keys = z.keys(), each = z.h / z.g;
  Scratch scratch(keys * (z.k + wide + 1) + 2 * kTile * wide + kTile * kRow + z.m + 2 * kPad + 112);
  float* panels = scratch.take(keys * z.k);
  float* values = scratch.take(keys * wide);
  float* queries = scratch.take(kTile * wide);
  float* found = scratch.take(kTile * wide);
  float* weights = scratch.take(kTile * kRow);
  float* biases = scratch.take(z.m + 2 * kPad);
  float* masks = scratch.take(keys);
  pack_mask(mask, row, z, masks);
  pack_panels(k + (row * z.s * z.g + group) * z.k, z.g * z.k, z, panels);
  pack_rows(v + (row * z.s * z.g + group) * z.k, z.g * z.k, z.s, keys, z, values);
  for (int64_t head = group * each; head < (group + 1) * each; ++head) {
    std::memset(biases, 0, (z.m + 2 * kPad) * sizeof(float));
    for (int64_t d = 0; d < z.m; ++d) biases[kPad + z.m - 1 - d] = bias[head * z.m + d];
    for (int64_t start = 0; start < z.t; start += kTile) {
      const Tile tile(z, first + row * z.t, last + row * z.t, start);
      const int64_t at = ((row * z.t + start) * z.h + head) * z.k;
      pack_rows(q + at, z.h * z.k, tile.count, tile.count, z, queries);
      std::memset(found, 0, tile.count * wide * sizeof(float));
      float tops[kTile], totals[kTile];
      std::fill_n(tops, kTile, kFloor);
      std::fill_n(totals, kTile, 1.0f);  // of the key with this logit and a zero value
      const int64_t step = tile.chunk();
      for (int64_t j = tile.low; j < tile.high; j += step) {
        const int64_t width = std::min(step, tile.high - j);
        logits(z, tile, queries, panels, biases, masks, j, width, weights);
        for (int64_t i = 0; i < tile.count; ++i) {
          float* w = weights + i * kRow;
          Vec most = load(w);
          for (int64_t c = kLanes; c < width; c += kLanes) {
            const Vec x = load(w + c);
            most = x > most ? x : most;
          }
          float highest = tops[i];
          for (int c = 0; c < kLanes; ++c) highest = std::max(highest, most[c]);
          if (highest > tops[i]) {
            const float shrink = std::exp(tops[i] - highest);
            totals[i] *= shrink;
            for (int64_t c = 0; c < wide; c += kLanes)
              store(found + i * wide + c, load(found + i * wide + c) * shrink);
            tops[i] = highest;
          }
          Vec total{};
          for (int64_t c = 0; c < width; c += kLanes) {
            const Vec e = exponential(load(w + c) - highest);
            store(w + c, e);
            total += e;
          }
          totals[i] += sum(total);
        }
        for (int64_t p = 0; p < width; p += kDeep)
          product(tile.count, wide, std::min(kDeep, width - p), weights + p, kRow, 1,
                  values + (j + p) * wide, wide, found, wide, true);
      }
      for (int64_t i = 0; i < tile.count; ++i) {
        const float share = 1.0f / totals[i];
        for (int64_t c = 0; c < wide; c += kLanes)
          store(found + i * wide + c, load(found + i * wide + c) * share);
        top[(row * z.h + head) * z.t + start + i] = tops[i] + std::log(totals[i]);
      }
      unpack_rows(found, tile.count, z, out + at, z.h * z.k);
    }
  }
}

void backward(const Sizes& z, int64_t row, int64_t group, const float* q, const float* k,
              const float* v, const int32_t* first, const int32_t* last, const float* bias,
              const float* mask, const float* out, const float* top, const float* dout, float* dq,
              float* dk, float* dv, float* dbias) {
  const int64_t wide = z.wide(), keys = z.keys(), each = z.h / z.g;
  Scratch scratch(keys * (2 * z.k + 3 * wide + 1) + 3 * kTile * wide + 2 * kTile * kRow +
                  2 * (z.m + 2 * kPad) + 208);
  float* panels = scratch.take(keys * z.k);
  float* value_panels = scratch.take(keys * z.k);
  float* key_rows = scratch.take(keys * wide);
  float* dkeys = scratch.take(keys * wide);
  float* dvalues = scratch.take(keys * wide);
  float* queries = scratch.take(kTile * wide);
  float* dfound = scratch.take(kTile * wide);
  float* dqueries = scratch.take(kTile * wide);
  float* weights = scratch.take(kTile * kRow);
  float* dweights = scratch.take(kTile * kRow);
  float* biases = scratch.take(z.m + 2 * kPad);
  float* dbiases = scratch.take(z.m + 2 * kPad);
  float* masks = scratch.take(keys);
  pack_mask(mask, row, z, masks);
  const int64_t source = (row * z.s * z.g + group) * z.k;
  pack_panels(k + source, z.g * z.k, z, panels);
  pack_panels(v + source, z.g * z.k, z, value_panels);
  pack_rows(k + source, z.g * z.k, z.s, keys, z, key_rows);
  std::memset(dkeys, 0, keys * wide * sizeof(float));
  std::memset(dvalues, 0, keys * wide * sizeof(float));
  for (int64_t head = group * each; head < (group + 1) * each; ++head) {
    std::memset(biases, 0, (z.m + 2 * kPad) * sizeof(float));
    std::memset(dbiases, 0, (z.m + 2 * kPad) * sizeof(float));
    for (int64_t d = 0; d < z.m; ++d) biases[kPad + z.m - 1 - d] = bias[head * z.m + d];
    for (int64_t start = 0; start < z.t; start += kTile) {
      const Tile tile(z, first + row * z.t, last + row * z.t, start);
      const int64_t at = ((row * z.t + start) * z.h + head) * z.k;
      pack_rows(q + at, z.h * z.k, tile.count, tile.count, z, queries);
      pack_rows(dout + at, z.h * z.k, tile.count, tile.count, z, dfound);
      std::memset(dqueries, 0, tile.count * wide * sizeof(float));
      float deltas[kTile];
      for (int64_t i = 0; i < tile.count; ++i) {
        const float *x = out + at + i * z.h * z.k, *dx = dfound + i * wide;
        float total = 0;
        for (int64_t c = 0; c < z.k; ++c) total += x[c] * dx[c];
        deltas[i] = total;
      }
      const int64_t step = tile.chunk();
      for (int64_t j = tile.low; j < tile.high; j += step) {
        const int64_t width = std::min(step, tile.high - j);
        logits(z, tile, queries, panels, biases, masks, j, width, weights);
        for (int64_t p = 0; p < width; p += kPanel)
          product(tile.count, kPanel, z.k, dfound, wide, 1, value_panels + (j + p) * z.k, kPanel,
                  dweights + p, kRow, false);
        for (int64_t i = 0; i < tile.count; ++i) {
          float *w = weights + i * kRow, *dw = dweights + i * kRow;
          const float highest = top[(row * z.h + head) * z.t + start + i], delta = deltas[i];
          for (int64_t c = 0; c < width; c += kLanes) {
            const Vec e = exponential(load(w + c) - highest);
            store(w + c, e);
            store(dw + c, e * (load(dw + c) - delta));
          }
          if (z.m) {
            float* of = dbiases + kPad + j - (start + i) - z.offset + z.m - 1;
            for (int64_t c = 0; c < width; c += kLanes) store(of + c, load(of + c) + load(dw + c));
          }
        }
        for (int64_t p = 0; p < width; p += kDeep)
          product(tile.count, wide, std::min(kDeep, width - p), dweights + p, kRow, 1,
                  key_rows + (j + p) * wide, wide, dqueries, wide, true);
        product(width, wide, tile.count, weights, 1, kRow, dfound, wide, dvalues + j * wide, wide,
                true);
        product(width, wide, tile.count, dweights, 1, kRow, queries, wide, dkeys + j * wide, wide,
                true);
      }
      unpack_rows(dqueries, tile.count, z, dq + at, z.h * z.k);
    }
    for (int64_t d = 0; d < z.m; ++d)
      dbias[(row * z.h + head) * z.m + d] = dbiases[kPad + z.m - 1 - d];
  }
  unpack_rows(dkeys, z.s, z, dk + source, z.g * z.k);
  unpack_rows(dvalues, z.s, z, dv + source, z.g * z.k);
}

Sizes sizes(const Floats& q, const Floats& k, const Floats& bias, const Floats& mask,
            int64_t offset) {
  auto a = q.dimensions(), b = k.dimensions();
  const bool masked = mask.dimensions()[1] > 0;
  return {a[0], a[1], b[1], a[2], b[2], a[3], bias.dimensions()[1], offset, masked};
}

ffi::Error run_forward(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Ints first, Ints last,
                       Floats bias, Floats mask, Result out, Result top, int64_t offset,
                       int64_t) {
  const Sizes z = sizes(q, k, bias, mask, offset);
  on_threads(pool, z.n * z.g, [&](int64_t i) {
    forward(z, i / z.g, i % z.g, q.typed_data(), k.typed_data(), v.typed_data(),
            first.typed_data(), last.typed_data(), bias.typed_data(), mask.typed_data(),
            out->typed_data(), top->typed_data());
  });
  return ffi::Error::Success();
}

ffi::Error run_backward(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Ints first, Ints last,
                        Floats bias, Floats mask, Floats out, Floats top, Floats dout, Result dq,
                        Result dk, Result dv, Result dbias, int64_t offset, int64_t) {
  const Sizes z = sizes(q, k, bias, mask, offset);
  on_threads(pool, z.n * z.g, [&](int64_t i) {
    backward(z, i / z.g, i % z.g, q.typed_data(), k.typed_data(), v.typed_data(),
             first.typed_data(), last.typed_data(), bias.typed_data(), mask.typed_data(),
             out.typed_data(), top.typed_data(), dout.typed_data(), dq->typed_data(),
             dk->typed_data(), dv->typed_data(), dbias->typed_data());
  });
  return ffi::Error::Success();
}

// What both take: queries, keys, values, ranges, biases, mask.
auto inputs() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Ints>()
      .Arg<Ints>()
      .Arg<Floats>()
      .Arg<Floats>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(attention_forward, run_forward,
                              inputs()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int64_t>("offset")
                                  .Attr<int64_t>("flops"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(attention_backward, run_backward,
                              inputs()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int64_t>("offset")
                                  .Attr<int64_t>("flops"));
