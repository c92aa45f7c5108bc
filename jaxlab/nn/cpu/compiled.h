// What compiled code of this room shares: vectors, one micro-kernel, scratch memory, threads.
//
// Vectors are those of GCC and Clang, as wide as the processor's.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 24;  // of 32: the rest hold factors
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 12;
#else
constexpr int kLanes = 4, kRegisters = 12;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Int __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vec load(const float* x) { return *reinterpret_cast<const Vec*>(x); }
inline void store(float* x, Vec v) { *reinterpret_cast<Vec*>(x) = v; }
inline Vec all(float x) { return x - Vec{}; }

// c[M rows, N vectors] = or += a[M, length] @ b[length, N vectors]; a by any two strides.
template <int M, int N>
inline void micro(int length, const float* a, int64_t row, int64_t column, const float* b,
                  int64_t b_row, float* c, int64_t c_row, bool add) {
  Vec sums[M][N];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) sums[i][j] = add ? load(c + i * c_row + j * kLanes) : Vec{};
  for (int l = 0; l < length; ++l) {
    Vec right[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) right[j] = load(b + l * b_row + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const Vec left = all(a[i * row + l * column]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) sums[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) store(c + i * c_row + j * kLanes, sums[i][j]);
}

template <int M, int N>
void rest_of_rows(int rows, int length, const float* a, int64_t row, int64_t column,
                  const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
  if constexpr (M > 0) {
    if (rows == M) return micro<M, N>(length, a, row, column, b, b_row, c, c_row, add);
    rest_of_rows<M - 1, N>(rows, length, a, row, column, b, b_row, c, c_row, add);
  }
}

template <int N>
void columns(int rows, int length, const float* a, int64_t row, int64_t column, const float* b,
             int64_t b_row, float* c, int64_t c_row, bool add) {
  constexpr int M = std::min(kRegisters / N, 12);
  int i = 0;
  for (; i + M <= rows; i += M)
    micro<M, N>(length, a + i * row, row, column, b, b_row, c + i * c_row, c_row, add);
  rest_of_rows<M - 1, N>(rows - i, length, a + i * row, row, column, b, b_row, c + i * c_row,
                         c_row, add);
}

// c[rows, width] = or += a[rows, length] @ b[length, width]; width: a multiple of the lanes.
void product(int rows, int width, int length, const float* a, int64_t row, int64_t column,
             const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
  int j = 0;
  for (; j + 4 * kLanes <= width; j += 4 * kLanes)
    columns<4>(rows, length, a, row, column, b + j, b_row, c + j, c_row, add);
  for (; j + 2 * kLanes <= width; j += 2 * kLanes)
    columns<2>(rows, length, a, row, column, b + j, b_row, c + j, c_row, add);
  for (; j < width; j += kLanes)
    columns<1>(rows, length, a, row, column, b + j, b_row, c + j, c_row, add);
}

// Pages of its own, outside of the heap: what lies there during a step would keep the step's
// temporaries, which are the largest of all, from the place that they had before.
class Pages {
 public:
  ~Pages() { give_back(); }
  float* at_least(size_t floats) {
    const size_t bytes = floats * sizeof(float);
    if (bytes > bytes_) {
      give_back();
      void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
      if (found == MAP_FAILED) throw std::bad_alloc();
      at_ = found, bytes_ = bytes;
    }
    return static_cast<float*>(at_);
  }

 private:
  void give_back() {
    if (bytes_) munmap(at_, bytes_);
    bytes_ = 0;
  }
  void* at_ = nullptr;
  size_t bytes_ = 0;
};

// Scratch memory of a thread, kept between calls; what is taken lies at cache lines.
class Scratch {
 public:
  explicit Scratch(size_t floats) {
    static thread_local Pages pages;
    next_ = pages.at_least(floats + 16);
  }
  float* take(int64_t floats) {
    float* result = next_;
    next_ += (floats + 15) / 16 * 16;
    return result;
  }

 private:
  float* next_;
};

// The lower, or upper, halves of two vectors, a number of each in turn.
template <int... I>
inline Vec lower(Vec x, Vec y, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, y, (I % 2 * kLanes + I / 2)...);
}
template <int... I>
inline Vec upper(Vec x, Vec y, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, y, (I % 2 * kLanes + (I + kLanes) / 2)...);
}

// A square of vectors; each turn puts rows i and i + half together, log2(lanes) turns transpose.
inline void transpose(Vec* rows) {
  constexpr std::make_integer_sequence<int, kLanes> all;
  for (int turn = 1; turn < kLanes; turn *= 2) {
    Vec next[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = lower(rows[i], rows[i + kLanes / 2], all);
      next[2 * i + 1] = upper(rows[i], rows[i + kLanes / 2], all);
    }
    std::copy_n(next, kLanes, rows);
  }
}

// Runs work(0) to work(count - 1) on the threads that are free, this one among them.
template <typename Work>
void on_threads(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable all_done;
    int64_t done = 0;
  };
  auto shared = std::make_shared<Shared>();
  const Work* task = &work;  // alive until all is done; whoever comes later does not touch it
  auto run = [shared, task, count] {
    int64_t mine = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < count; ++mine) (*task)(i);
    if (!mine) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    if ((shared->done += mine) == count) shared->all_done.notify_all();
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::decay_t<decltype(run)>(run));
  run();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == count; });
}

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Result = ffi::Result<Floats>;

}  // namespace
