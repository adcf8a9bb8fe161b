// atomics.h - how the ring code reaches shared words.
//
// The algorithms of this folder are templates over a policy with these operations, so that the
// source which ships is also the one that the model checker explores (tests/model) and TSan
// watches.
#pragma once

#include <atomic>
#include <cstdint>

namespace mw {

struct StdAtomics {
  template <class T>
  static T load_relaxed(T& w) {
    return std::atomic_ref(w).load(std::memory_order_relaxed);
  }
  template <class T>
  static T load_acquire(T& w) {
    return std::atomic_ref(w).load(std::memory_order_acquire);
  }
  template <class T>
  static T load_seq(T& w) {
    return std::atomic_ref(w).load(std::memory_order_seq_cst);
  }
  template <class T, class U>
  static void store_relaxed(T& w, U v) {
    std::atomic_ref(w).store(static_cast<T>(v), std::memory_order_relaxed);
  }
  template <class T, class U>
  static void store_release(T& w, U v) {
    std::atomic_ref(w).store(static_cast<T>(v), std::memory_order_release);
  }
  template <class T, class U>
  static T fetch_or(T& w, U v) {
    return std::atomic_ref(w).fetch_or(static_cast<T>(v), std::memory_order_seq_cst);
  }
  template <class T, class U>
  static T fetch_and(T& w, U v) {
    return std::atomic_ref(w).fetch_and(static_cast<T>(v), std::memory_order_seq_cst);
  }
  template <class T, class U>
  static T fetch_add(T& w, U v) {
    return std::atomic_ref(w).fetch_add(static_cast<T>(v), std::memory_order_seq_cst);
  }
  template <class T, class U>
  static T exchange(T& w, U v) {
    return std::atomic_ref(w).exchange(static_cast<T>(v), std::memory_order_seq_cst);
  }
  // False: it is no longer `expected`, and stays what it is.
  template <class T, class U>
  static bool compare_exchange(T& w, U expected, U v) {
    T seen = static_cast<T>(expected);
    return std::atomic_ref(w).compare_exchange_strong(seen, static_cast<T>(v));
  }
  static void fence() {
#ifdef __SANITIZE_THREAD__
    // ThreadSanitizer knows no fences; a locked operation orders as much on x86.
    static uint32_t word = 0;
    std::atomic_ref(word).fetch_add(1, std::memory_order_seq_cst);
#else
    std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
  }
};

}  // namespace mw
