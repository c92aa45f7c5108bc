// Products of two float32 matrices, each as it is or transposed.
//
// Blocks of both factors are packed for the nearest caches, then multiplied by the micro-kernel of
// compiled.h; the sums over the inner axis come in one order, however many threads there are.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "compiled.h"

namespace {

constexpr int kNarrow = 2 * kLanes;  // columns of a packed panel of the right factor
constexpr int64_t kInner = 256;      // of a block: a panel of so many rows fits the nearest cache
constexpr int64_t kRows = 96;        // of a block of the left factor
constexpr int64_t kColumns = 512;    // of a block of the right factor
constexpr int64_t kFew = 24;         // rows of a product for which packing does not pay
constexpr int64_t kSmall = 1 << 20;  // multiplications that are not worth another thread

// A matrix by its two strides, one of which is 1.
struct Matrix {
  const float* at;
  int64_t row, column;
  Matrix from(int64_t i, int64_t j) const { return {at + i * row + j * column, row, column}; }
};

// A block of the left factor, with rows (or columns) that do not lie a power of two apart.
Matrix pack_left(const Matrix& a, int64_t rows, int64_t length, float* to) {
  if (a.column == 1) {
    for (int64_t i = 0; i < rows; ++i)
      std::memcpy(to + i * (kInner + 16), a.at + i * a.row, length * sizeof(float));
    return {to, kInner + 16, 1};
  }
  for (int64_t l = 0; l < length; ++l)
    std::memcpy(to + l * (kRows + 16), a.at + l * a.column, rows * sizeof(float));
  return {to, 1, kRows + 16};
}

// A block of the right factor, to panels [panels][length][kNarrow]; zeros fill the last one.
void pack_right(const Matrix& b, int64_t length, int64_t width, float* to) {
  if (b.column == 1) {  // along its rows, as memory is read fastest
    for (int64_t l = 0; l < length; ++l) {
      const float* x = b.at + l * b.row;
      float* panel = to + l * kNarrow;
      int64_t j = 0;
      for (; j + kNarrow <= width; j += kNarrow, panel += length * kNarrow)
        for (int c = 0; c < kNarrow; c += kLanes) store(panel + c, load(x + j + c));
      if (j == width) continue;
      std::memcpy(panel, x + j, (width - j) * sizeof(float));
      std::fill(panel + width - j, panel + kNarrow, 0.0f);
    }
    return;
  }
  for (int64_t j = 0; j < width; j += kNarrow, to += length * kNarrow)
    for (int64_t c = 0; c < kNarrow; c += kLanes)
      for (int64_t l = 0; l < length; l += kLanes) {
        Vec rows[kLanes] = {};
        const int64_t count = std::min<int64_t>(kLanes, width - j - c);
        const int64_t some = std::min<int64_t>(kLanes, length - l);
        for (int64_t i = 0; i < count; ++i)
          std::memcpy(rows + i, b.at + (j + c + i) * b.column + l, some * sizeof(float));
        transpose(rows);
        for (int64_t i = 0; i < some; ++i) store(to + (l + i) * kNarrow + c, rows[i]);
      }
}

// c[rows, width] = a[rows, length] @ b[length, width], rows of c `c_row` apart.
void multiply(int64_t rows, int64_t width, int64_t length, const Matrix& a, const Matrix& b,
              float* c, int64_t c_row) {
  Scratch scratch((kRows + 16) * (kInner + 16) + (kColumns + kNarrow) * kInner + kRows * kNarrow);
  float* left = scratch.take((kRows + 16) * (kInner + 16));
  float* right = scratch.take((kColumns + kNarrow) * kInner);
  float* found = scratch.take(kRows * kNarrow);
  for (int64_t j = 0; j < width; j += kColumns) {
    const int64_t wide = std::min(kColumns, width - j);
    for (int64_t l = 0; l < length; l += kInner) {
      const int64_t deep = std::min(kInner, length - l);
      const bool packed = rows > kFew || b.column != 1 || wide % kNarrow;
      if (packed) pack_right(b.from(l, j), deep, wide, right);
      for (int64_t i = 0; i < rows; i += kRows) {
        const int64_t high = std::min(kRows, rows - i);
        const Matrix block = packed ? pack_left(a.from(i, l), high, deep, left) : a.from(i, l);
        for (int64_t p = 0; p < wide; p += kNarrow) {
          const float* panel = packed ? right + p * deep : b.from(l, j + p).at;
          const int64_t stride = packed ? kNarrow : b.row;
          float* to = c + i * c_row + j + p;
          const int64_t count = wide - p;
          if (count >= kNarrow) {
            columns<2>(high, deep, block.at, block.row, block.column, panel, stride, to, c_row,
                       l > 0);
            continue;
          }
          columns<2>(high, deep, block.at, block.row, block.column, panel, stride, found, kNarrow,
                     false);
          for (int64_t y = 0; y < high; ++y)
            for (int64_t x = 0; x < count; ++x)
              to[y * c_row + x] = found[y * kNarrow + x] + (l > 0 ? to[y * c_row + x] : 0.0f);
        }
      }
    }
  }
}

ffi::Error run_product(ffi::ThreadPool pool, Floats x, Floats y, Result out, bool transpose_x,
                       bool transpose_y, int64_t) {
  const auto x_dims = x.dimensions(), y_dims = y.dimensions();
  const int64_t rows = x_dims[transpose_x], length = x_dims[!transpose_x];
  const int64_t width = y_dims[!transpose_y];
  const Matrix a{x.typed_data(), transpose_x ? 1 : x_dims[1], transpose_x ? x_dims[1] : 1};
  const Matrix b{y.typed_data(), transpose_y ? 1 : y_dims[1], transpose_y ? y_dims[1] : 1};
  float* c = out->typed_data();
  if (!length) std::fill_n(c, rows * width, 0.0f);
  const int64_t threads = rows * width * length < kSmall ? 1 : pool.num_threads();
  int64_t high = rows, wide = width;
  if (threads > 1) {  // pieces of both sides, about two for each thread
    wide = kColumns;
    const int64_t across = (width + wide - 1) / wide;
    const int64_t down = std::max<int64_t>(1, 2 * threads / across);
    high = std::max<int64_t>(1, (rows + down * kRows - 1) / (down * kRows)) * kRows;
  }
  const int64_t down = (rows + high - 1) / std::max<int64_t>(1, high);
  const int64_t across = (width + wide - 1) / std::max<int64_t>(1, wide);
  on_threads(pool, down * across, [&](int64_t task) {
    const int64_t i = task / across * high, j = task % across * wide;
    multiply(std::min(high, rows - i), std::min(wide, width - j), length, a.from(i, 0),
             b.from(0, j), c + i * width + j, width);
  });
  return ffi::Error::Success();
}

// max(x, 0), a piece of kSmall numbers at a time.
ffi::Error run_rectify(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> out) {
  const int64_t size = x.element_count();
  const float* from = reinterpret_cast<const float*>(x.untyped_data());
  float* to = reinterpret_cast<float*>(out->untyped_data());
  on_threads(pool, (size + kSmall - 1) / kSmall, [&](int64_t piece) {
    const int64_t end = std::min<int64_t>(size, (piece + 1) * kSmall);
    for (int64_t i = piece * kSmall; i < end; ++i) to[i] = from[i] < 0 ? 0.0f : from[i];
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(rectify, run_rectify,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(matrix_product, run_product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Attr<bool>("transpose_x")
                                  .Attr<bool>("transpose_y")
                                  .Attr<int64_t>("flops"));
