// result.h - a value or the reason why there is none.
//
// Four kinds of failure are kept apart: an outcome (a refused connect) is data in a reply and never
// a Result; `sys` is our environment; `peer` is the other end of a channel breaking the protocol
// and leads to poisoning; a bug aborts. Errors are trivially copyable and allocate nothing.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <utility>
#include <variant>

namespace mw {

enum class Fault : uint8_t { would_block, sys, peer, limit, shutdown };

struct Error {
  Fault fault;
  int err;            // errno for Fault::sys, else 0
  const char* where;  // a literal that names the step
};

// E: what says why. The front end's has sentences (frontend/failure.h).
template <class T, class E = Error>
class [[nodiscard]] Result {
 public:
  Result(T value) : v_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit by design
  Result(E error) : v_(std::in_place_index<1>, std::move(error)) {}  // NOLINT
  explicit operator bool() const { return v_.index() == 0; }
  T& operator*() {
    if (v_.index() != 0) std::abort();
    return *std::get_if<0>(&v_);
  }
  T* operator->() { return &**this; }
  const E& error() const {
    if (v_.index() != 1) std::abort();
    return *std::get_if<1>(&v_);
  }

 private:
  std::variant<T, E> v_;
};

struct Ok {};
using Status = Result<Ok>;

}  // namespace mw
