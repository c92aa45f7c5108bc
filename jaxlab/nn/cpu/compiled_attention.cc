// Softmax attention where each query reads a range of keys, forward and backward, in float32.
//
// A tile of queries meets a chunk of keys at a time; logits and weights stay in the cache. All
// products are one micro-kernel on packed rows. Queries and keys are normalised as they are packed,
// and the heads of several readings are written side by side. See compiled_attention.py for what is
// computed.
//
// Letters: n rows, t queries, s keys, h heads, g heads of keys, k width of a head, m distances.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

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
constexpr float kEpsilon = 1e-6f;   // as norm.EPSILON

// The lanes of a vector taken together in pairs, log2(lanes) times.
template <typename Op>
inline float fold(Vec v, const Op& op) {
  float x[kLanes];
  store(x, v);
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) x[i] = op(x[i], x[i + half]);
  return x[0];
}
inline float sum(Vec v) {
  return fold(v, [](float x, float y) { return x + y; });
}
inline float most(Vec v) {
  return fold(v, [](float x, float y) { return x > y ? x : y; });
}

inline float dot(const float* x, const float* y, int64_t wide) {
  Vec total{};
  for (int64_t c = 0; c < wide; c += kLanes) total += load(x + c) * load(y + c);
  return sum(total);
}

inline void multiply(float* x, float factor, int64_t wide) {
  for (int64_t c = 0; c < wide; c += kLanes) store(x + c, load(x + c) * factor);
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

// What one set of queries reads: keys and values in two pieces, of which one may be empty.
struct Reading {
  const float *q, *k[2], *v[2], *bias, *mask, *scale;
  const int32_t *first, *last, *unit;
  int64_t n, t, s, old, h, g, m, offset;  // s keys, `old` of them in the first piece
  int64_t turn;         // blocks of queries; rows of keys lie block by block, those of queries not
  int64_t width, head;  // heads of an output row, and our first of them
  int64_t size;         // k
  bool masked, scaled;

  int64_t wide() const { return (size + kLanes - 1) / kLanes * kLanes; }
  int64_t keys() const { return (s + kPanel - 1) / kPanel * kPanel; }

  int64_t query_at(int64_t row, int64_t i, int64_t of) const {
    return ((row * t + i) * h + of) * size;
  }
  int64_t output_at(int64_t row, int64_t i, int64_t of) const {
    return ((row * t + i) * width + head + of) * size;
  }
  // The place of key j in its piece.
  int64_t key_at(int64_t row, int64_t group, int64_t j) const {
    const int64_t of_keys = row % turn * (n / turn) + row / turn;
    const int64_t count = j < old ? old : s - old, i = j < old ? j : j - old;
    return ((of_keys * count + i) * g + group) * size;
  }
};

// Rows of `size` floats, `stride` apart, to rows of `wide`, zeros beside them.
void pack_rows(const Reading& z, const float* x, int64_t stride, int64_t count, float* rows) {
  const int64_t wide = z.wide();
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(rows + i * wide, x + i * stride, z.size * sizeof(float));
    std::fill(rows + i * wide + z.size, rows + (i + 1) * wide, 0.0f);
  }
}

void unpack_rows(const Reading& z, const float* rows, int64_t count, float* x, int64_t stride) {
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(x + i * stride, rows + i * z.wide(), z.size * sizeof(float));
}

// Keys or values of a row and group, as rows; zeros fill those up to whole panels.
void pack_keys(const Reading& z, const float* const* pieces, int64_t row, int64_t group,
               float* rows) {
  const int64_t stride = z.g * z.size;
  if (z.old) pack_rows(z, pieces[0] + z.key_at(row, group, 0), stride, z.old, rows);
  if (z.old < z.s)
    pack_rows(z, pieces[1] + z.key_at(row, group, z.old), stride, z.s - z.old,
              rows + z.old * z.wide());
  std::fill(rows + z.s * z.wide(), rows + z.keys() * z.wide(), 0.0f);
}

void unpack_keys(const Reading& z, const float* rows, int64_t row, int64_t group,
                 float* const* pieces) {
  const int64_t stride = z.g * z.size;
  if (z.old) unpack_rows(z, rows, z.old, pieces[0] + z.key_at(row, group, 0), stride);
  if (z.old < z.s)
    unpack_rows(z, rows + z.old * z.wide(), z.s - z.old,
                pieces[1] + z.key_at(row, group, z.old), stride);
}

// Makes a row one of length 1, and returns its factor.
inline float normalise(float* row, int64_t wide) {
  const float factor = 1.0f / std::sqrt(dot(row, row, wide) + kEpsilon);
  multiply(row, factor, wide);
  return factor;
}

// From the derivative by a row of length 1 that by the row it was made of.
inline void normalised(const float* row, float factor, int64_t wide, float* drow) {
  const float along = dot(row, drow, wide);
  for (int64_t c = 0; c < wide; c += kLanes)
    store(drow + c, (load(drow + c) - load(row + c) * along) * factor);
}

// Packed keys, in place, where their piece is to be normalised; keeps their factors.
void normalise_keys(const Reading& z, float* rows, float* factors) {
  for (int64_t j = 0; j < z.s; ++j)
    if (z.unit[j >= z.old]) factors[j] = normalise(rows + j * z.wide(), z.wide());
}

// Packed rows to panels [panels][k][kPanel].
void pack_panels(const Reading& z, const float* rows, float* panels) {
  for (int64_t j = 0; j < z.keys(); j += kLanes) {
    float* to = panels + j / kPanel * kPanel * z.size + j % kPanel;
    for (int64_t c = 0; c < z.size; c += kLanes) {
      Vec square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load(rows + (j + i) * z.wide() + c);
      transpose(square);
      const int64_t width = std::min<int64_t>(kLanes, z.size - c);
      for (int64_t i = 0; i < width; ++i) store(to + (c + i) * kPanel, square[i]);
    }
  }
}

void pack_mask(const Reading& z, int64_t row, float* masks) {
  if (!z.masked) return;
  std::memcpy(masks, z.mask + row * z.s, z.s * sizeof(float));
  std::fill(masks + z.s, masks + z.keys(), kMasked);
}

void pack_biases(const Reading& z, int64_t head, float* biases) {
  std::memset(biases, 0, (z.m + 2 * kPad) * sizeof(float));
  for (int64_t d = 0; d < z.m; ++d) biases[kPad + z.m - 1 - d] = z.bias[head * z.m + d];
}

// The queries of a tile, normalised and scaled where asked; keeps what they were before the scale,
// and their factors.
void pack_queries(const Reading& z, const float* q, int64_t count, int64_t head, float* queries,
                  float* units, float* factors) {
  const int64_t wide = z.wide();
  pack_rows(z, q, z.h * z.size, count, queries);
  if (!z.scaled) return;
  for (int64_t i = 0; i < count; ++i) factors[i] = normalise(queries + i * wide, wide);
  if (units) std::memcpy(units, queries, count * wide * sizeof(float));
  multiply(queries, z.scale[head], count * wide);
}

// What the queries of a tile see.
struct Tile {
  int64_t start, count, low, high;   // queries; keys [low, high), whole panels
  int64_t from[kTile], to[kTile];    // keys [from, to) of each query
  int64_t all_from = 0, all_to = 0;  // keys that all of them see

  Tile(const Reading& z, int64_t row, int64_t start)
      : start(start), count(std::min<int64_t>(kTile, z.t - start)) {
    int64_t least = z.s, most = 0;
    all_to = z.s;
    for (int64_t i = 0; i < count; ++i) {
      from[i] = std::max<int64_t>(z.first[row * z.t + start + i], 0);
      to[i] = std::min<int64_t>(int64_t{z.last[row * z.t + start + i]} + 1, z.s);
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
void logits(const Reading& z, const Tile& tile, const float* q, const float* panels,
            const float* bias, const float* mask, int64_t j, int64_t width, float* out) {
  for (int64_t p = 0; p < width; p += kPanel)
    product(tile.count, kPanel, z.size, q, z.wide(), 1, panels + (j + p) * z.size, kPanel,
            out + p, kRow, false);
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

void forward(const Reading& z, int64_t row, int64_t group, float* out, float* top) {
  const int64_t wide = z.wide(), keys = z.keys(), each = z.h / z.g;
  Scratch scratch(keys * (z.size + wide + 2) + 2 * kTile * wide + kTile * kRow + z.m + 2 * kPad +
                  128);
  float* panels = scratch.take(keys * z.size);
  float* values = scratch.take(keys * wide);
  float* queries = scratch.take(kTile * wide);
  float* found = scratch.take(kTile * wide);
  float* weights = scratch.take(kTile * kRow);
  float* biases = scratch.take(z.m + 2 * kPad);
  float* masks = scratch.take(keys);
  float* key_factors = scratch.take(keys);
  pack_mask(z, row, masks);
  pack_keys(z, z.k, row, group, values);  // the keys, until they are in panels
  normalise_keys(z, values, key_factors);
  pack_panels(z, values, panels);
  pack_keys(z, z.v, row, group, values);
  for (int64_t head = group * each; head < (group + 1) * each; ++head) {
    pack_biases(z, head, biases);
    for (int64_t start = 0; start < z.t; start += kTile) {
      const Tile tile(z, row, start);
      float factors[kTile];
      pack_queries(z, z.q + z.query_at(row, start, head), tile.count, head, queries, nullptr,
                   factors);
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
          Vec tallest = load(w);
          for (int64_t c = kLanes; c < width; c += kLanes) {
            const Vec x = load(w + c);
            tallest = x > tallest ? x : tallest;
          }
          const float highest = std::max(tops[i], most(tallest));
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
      unpack_rows(z, found, tile.count, out + z.output_at(row, start, head), z.width * z.size);
    }
  }
}

// Derivatives of a reading; those by biases and scales are a row's own.
struct Derivatives {
  float *q, *k[2], *v[2], *bias, *scale;
};

void backward(const Reading& z, int64_t row, int64_t group, const float* out, const float* top,
              const float* dout, const Derivatives& d) {
  const int64_t wide = z.wide(), keys = z.keys(), each = z.h / z.g;
  Scratch scratch(keys * (2 * z.size + 3 * wide + 2) + 4 * kTile * wide + 2 * kTile * kRow +
                  2 * (z.m + 2 * kPad) + 240);
  float* panels = scratch.take(keys * z.size);
  float* value_panels = scratch.take(keys * z.size);
  float* key_rows = scratch.take(keys * wide);
  float* dkeys = scratch.take(keys * wide);
  float* dvalues = scratch.take(keys * wide);
  float* queries = scratch.take(kTile * wide);
  float* units = scratch.take(kTile * wide);
  float* dfound = scratch.take(kTile * wide);
  float* dqueries = scratch.take(kTile * wide);
  float* weights = scratch.take(kTile * kRow);
  float* dweights = scratch.take(kTile * kRow);
  float* biases = scratch.take(z.m + 2 * kPad);
  float* dbiases = scratch.take(z.m + 2 * kPad);
  float* masks = scratch.take(keys);
  float* key_factors = scratch.take(keys);
  pack_mask(z, row, masks);
  pack_keys(z, z.v, row, group, key_rows);  // the values, until they are in panels
  pack_panels(z, key_rows, value_panels);
  pack_keys(z, z.k, row, group, key_rows);
  normalise_keys(z, key_rows, key_factors);
  pack_panels(z, key_rows, panels);
  std::memset(dkeys, 0, keys * wide * sizeof(float));
  std::memset(dvalues, 0, keys * wide * sizeof(float));
  for (int64_t head = group * each; head < (group + 1) * each; ++head) {
    pack_biases(z, head, biases);
    std::memset(dbiases, 0, (z.m + 2 * kPad) * sizeof(float));
    float dscale = 0;
    for (int64_t start = 0; start < z.t; start += kTile) {
      const Tile tile(z, row, start);
      const int64_t at = z.output_at(row, start, head), stride = z.width * z.size;
      float factors[kTile], deltas[kTile];
      pack_queries(z, z.q + z.query_at(row, start, head), tile.count, head, queries, units,
                   factors);
      pack_rows(z, dout + at, stride, tile.count, dfound);
      pack_rows(z, out + at, stride, tile.count, dqueries);  // until the deltas are known
      for (int64_t i = 0; i < tile.count; ++i)
        deltas[i] = dot(dqueries + i * wide, dfound + i * wide, wide);
      std::memset(dqueries, 0, tile.count * wide * sizeof(float));
      const int64_t step = tile.chunk();
      for (int64_t j = tile.low; j < tile.high; j += step) {
        const int64_t width = std::min(step, tile.high - j);
        logits(z, tile, queries, panels, biases, masks, j, width, weights);
        for (int64_t p = 0; p < width; p += kPanel)
          product(tile.count, kPanel, z.size, dfound, wide, 1, value_panels + (j + p) * z.size,
                  kPanel, dweights + p, kRow, false);
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
      if (z.scaled)
        for (int64_t i = 0; i < tile.count; ++i) {
          float* dx = dqueries + i * wide;
          dscale += dot(units + i * wide, dx, wide);
          normalised(units + i * wide, factors[i] * z.scale[head], wide, dx);
        }
      unpack_rows(z, dqueries, tile.count, d.q + z.query_at(row, start, head), z.h * z.size);
    }
    for (int64_t i = 0; i < z.m; ++i)
      d.bias[(row * z.h + head) * z.m + i] = dbiases[kPad + z.m - 1 - i];
    if (z.scaled) d.scale[row * z.h + head] = dscale;
  }
  for (int64_t j = 0; j < z.s; ++j)
    if (z.unit[j >= z.old]) normalised(key_rows + j * wide, key_factors[j], wide, dkeys + j * wide);
  unpack_keys(z, dkeys, row, group, d.k);
  unpack_keys(z, dvalues, row, group, d.v);
}

// The arrays of each reading, in order; the tokens of a row follow each other in all of them.
enum Input { kQuery, kOld, kOldValues, kNew, kNewValues, kFirst, kLast, kBias, kMask, kScale, kUnit,
             kInputs };
// Their derivatives: by queries, both pieces of keys and values, biases, scales.
constexpr int kDerivatives = 7;

template <typename T>
T* data(const ffi::AnyBuffer& buffer) {
  return reinterpret_cast<T*>(buffer.untyped_data());
}

// The readings that the first arguments are, of queries [b, t, 1, h, k].
std::vector<Reading> readings(const std::vector<ffi::AnyBuffer>& x,
                              ffi::Span<const int64_t> offsets) {
  std::vector<Reading> result;
  int64_t head = 0;
  for (size_t p = 0; p < offsets.size(); ++p) {
    const ffi::AnyBuffer* in = x.data() + p * kInputs;
    auto of = [&](Input i) { return in[i].dimensions(); };
    auto floats = [&](Input i) { return data<const float>(in[i]); };
    auto ints = [&](Input i) { return data<const int32_t>(in[i]); };
    const auto q = of(kQuery), k = of(kOld);
    const bool blocks = k.size() == 5;  // [blocks, b, s, g, k]
    const int64_t turn = blocks ? k[0] : 1, old = k[1 + blocks];
    Reading z;
    z.q = floats(kQuery), z.bias = floats(kBias), z.mask = floats(kMask), z.scale = floats(kScale);
    z.k[0] = floats(kOld), z.k[1] = floats(kNew);
    z.v[0] = floats(kOldValues), z.v[1] = floats(kNewValues);
    z.first = ints(kFirst), z.last = ints(kLast), z.unit = ints(kUnit);
    z.n = q[0] * turn, z.t = q[1] / turn, z.h = q[3], z.size = q[4];
    z.old = old, z.s = old + of(kNew)[1], z.g = k[2 + blocks];
    z.m = of(kBias)[1], z.offset = offsets[p], z.turn = turn;
    z.masked = of(kMask)[1] > 0, z.scaled = of(kScale)[0] > 0;
    z.head = head, head += z.h;
    result.push_back(z);
  }
  for (Reading& z : result) z.width = head;
  return result;
}

// work(reading, row, group) for all of all readings.
template <typename Work>
void for_each(ffi::ThreadPool& pool, const std::vector<Reading>& all, const Work& work) {
  int64_t count = 0;
  for (const Reading& z : all) count += z.n * z.g;
  on_threads(pool, count, [&](int64_t i) {
    size_t p = 0;
    for (; i >= all[p].n * all[p].g; ++p) i -= all[p].n * all[p].g;
    work(p, i / all[p].g, i % all[p].g);
  });
}

template <typename Buffers>
ffi::ErrorOr<std::vector<ffi::AnyBuffer>> arguments(const Buffers& x) {
  std::vector<ffi::AnyBuffer> result;
  for (size_t i = 0; i < x.size(); ++i) {
    auto each = x.template get<ffi::AnyBuffer>(i);
    if (!each.has_value()) return ffi::Unexpected(each.error());
    if constexpr (std::is_same_v<Buffers, ffi::RemainingRets>) result.push_back(**each);
    else result.push_back(*each);
  }
  return result;
}

// work(readings, arguments, results).
template <typename Work>
ffi::Error run(ffi::RemainingArgs args, ffi::RemainingRets results,
               ffi::Span<const int64_t> offsets, const Work& work) {
  const auto in = arguments(args), out = arguments(results);
  if (!in.has_value()) return in.error();
  if (!out.has_value()) return out.error();
  work(readings(*in, offsets), *in, *out);
  return ffi::Error::Success();
}

using Buffers = std::vector<ffi::AnyBuffer>;

// Results: the heads of all readings [b, t, readings, h, k], and the logsumexp of each.
ffi::Error run_forward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets results,
                       ffi::Span<const int64_t> offsets, int64_t) {
  return run(args, results, offsets, [&](const auto& all, const Buffers&, const Buffers& out) {
    for_each(pool, all, [&](size_t p, int64_t row, int64_t group) {
      forward(all[p], row, group, data<float>(out[0]), data<float>(out[1 + p]));
    });
  });
}

// After the arrays of the readings come what forward gave, and the derivative by its heads.
ffi::Error run_backward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets results,
                        ffi::Span<const int64_t> offsets, int64_t) {
  return run(args, results, offsets, [&](const auto& all, const Buffers& in, const Buffers& out) {
    const ffi::AnyBuffer* rest = in.data() + all.size() * kInputs;
    for_each(pool, all, [&](size_t p, int64_t row, int64_t group) {
      const ffi::AnyBuffer* to = out.data() + p * kDerivatives;
      const Derivatives d{data<float>(to[0]), {data<float>(to[1]), data<float>(to[3])},
                          {data<float>(to[2]), data<float>(to[4])}, data<float>(to[5]),
                          data<float>(to[6])};
      backward(all[p], row, group, data<const float>(rest[0]), data<const float>(rest[1 + p]),
               data<const float>(rest[1 + all.size()]), d);
    });
  });
}

auto binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .RemainingArgs()
      .RemainingRets()
      .Attr<ffi::Span<const int64_t>>("offsets")
      .Attr<int64_t>("flops");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(attention_forward, run_forward, binding());

XLA_FFI_DEFINE_HANDLER_SYMBOL(attention_backward, run_backward, binding());
