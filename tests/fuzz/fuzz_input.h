// fuzz_input.h - reads a fuzzer's bytes as numbers and pieces; when they are used up, zeros.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>

namespace mw::fuzz {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : left_(data, size) {}

  bool empty() const { return left_.empty(); }
  template <class T>
  T number() {
    T value{};
    take(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  // A number below the limit.
  uint32_t below(uint32_t limit) { return number<uint16_t>() % limit; }
  void take(std::span<std::byte> out) {
    const size_t n = std::min(out.size(), left_.size());
    std::memcpy(out.data(), left_.data(), n);
    std::memset(out.data() + n, 0, out.size() - n);
    left_ = left_.subspan(n);
  }

 private:
  std::span<const uint8_t> left_;
};

// What must hold whatever the input is.
inline void require(bool holds, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (holds) return;
  std::printf("%s:%d: does not hold\n", file, line);
  std::fflush(stdout);
  std::abort();
}

}  // namespace mw::fuzz

// The entry that libFuzzer and the replayer call.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// A target may say what came of the input before: a number that follows from all that it did.
extern "C" [[gnu::weak]] uint64_t mw_fuzz_outcome();
