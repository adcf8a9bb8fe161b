/* atomic.h - how the core reaches words and bytes that another domain can change.
 *
 * PROBLEM     A kernel that runs on one processor patches the LOCK prefix out of its own atomic
 *             operations, in modules too. Another domain runs on another processor all the same,
 *             so an atomic_or() or cmpxchg() of such a kernel loses bits of a shared word.
 * PROMISE     Each operation here is atomic between domains. In the kernel it is xchg, which locks
 *             by itself, or carries a literal "lock", which no table names (tests/kmod checks the
 *             objects for that). None is a loop, so the other side cannot keep us in one.
 * ORDERING    Read-modify-write operations and mw_fence() are full barriers. mw_load_seq() is
 *             sequentially consistent with them.
 * HOOKS       With MW_CORE_HOOKS every access is a function that a test provides: the model
 *             checker's atomics, or a fuzzer that chooses each value. */
#pragma once
#include "kmod/core/base.h"

#if defined(MW_CORE_HOOKS)

#ifdef __cplusplus
extern "C" {
#endif
enum mw_order { MW_RELAXED, MW_ORDERED, MW_SEQ };
/* `size` is that of the word, 4 or 8. MW_ORDERED: acquire of a load, release of a store. */
uint64_t mw_hook_load(const void* word, uint32_t size, enum mw_order order);
void mw_hook_store(void* word, uint32_t size, uint64_t value, enum mw_order order);
uint64_t mw_hook_xchg(void* word, uint32_t size, uint64_t value);
uint64_t mw_hook_fetch_or(void* word, uint32_t size, uint64_t bits);
uint64_t mw_hook_fetch_and(void* word, uint32_t size, uint64_t bits);
void mw_hook_fence(void);
void mw_hook_read(void* to, const void* shared, size_t n);
void mw_hook_write(void* shared, const void* from, size_t n);
#ifdef __cplusplus
}
#endif

static inline uint32_t mw_load_relaxed32(const uint32_t* w) {
  return (uint32_t)mw_hook_load(w, 4, MW_RELAXED);
}
static inline uint32_t mw_load_acquire32(const uint32_t* w) {
  return (uint32_t)mw_hook_load(w, 4, MW_ORDERED);
}
static inline uint32_t mw_load_seq32(const uint32_t* w) {
  return (uint32_t)mw_hook_load(w, 4, MW_SEQ);
}
static inline uint64_t mw_load_seq64(const uint64_t* w) {
  return mw_hook_load(w, 8, MW_SEQ);
}
static inline void mw_store_relaxed32(uint32_t* w, uint32_t v) {
  mw_hook_store(w, 4, v, MW_RELAXED);
}
static inline void mw_store_release32(uint32_t* w, uint32_t v) {
  mw_hook_store(w, 4, v, MW_ORDERED);
}
static inline uint32_t mw_xchg32(uint32_t* w, uint32_t v) {
  return (uint32_t)mw_hook_xchg(w, 4, v);
}
static inline uint64_t mw_xchg64(uint64_t* w, uint64_t v) {
  return mw_hook_xchg(w, 8, v);
}
static inline void mw_set_bit32(uint32_t* w, uint32_t bit) {
  (void)mw_hook_fetch_or(w, 4, (uint32_t)1 << bit);
}
static inline void mw_set_bit64(uint64_t* w, uint32_t bit) {
  (void)mw_hook_fetch_or(w, 8, (uint64_t)1 << bit);
}
static inline bool mw_test_and_clear_bit32(uint32_t* w, uint32_t bit) {
  const uint32_t mask = (uint32_t)1 << bit;
  return (mw_hook_fetch_and(w, 4, ~mask) & mask) != 0;
}
static inline void mw_fence(void) {
  mw_hook_fence();
}
static inline void mw_shared_read(void* to, const void* shared, size_t n) {
  mw_hook_read(to, shared, n);
}
static inline void mw_shared_write(void* shared, const void* from, size_t n) {
  mw_hook_write(shared, from, n);
}

#elif defined(__KERNEL__)

#include <asm/barrier.h>
#include <asm/rmwcc.h>
#include <linux/atomic.h>
#ifndef CONFIG_X86_64
#error "the orders below are those of x86-64"
#endif

static inline uint32_t mw_load_relaxed32(const uint32_t* w) {
  return READ_ONCE(*w);
}
static inline uint32_t mw_load_acquire32(const uint32_t* w) {
  return virt_load_acquire(w);
}
/* A load is ordered behind every locked operation before it. */
static inline uint32_t mw_load_seq32(const uint32_t* w) {
  return virt_load_acquire(w);
}
static inline uint64_t mw_load_seq64(const uint64_t* w) {
  return virt_load_acquire(w);
}
static inline void mw_store_relaxed32(uint32_t* w, uint32_t v) {
  WRITE_ONCE(*w, v);
}
static inline void mw_store_release32(uint32_t* w, uint32_t v) {
  virt_store_release(w, v);
}
static inline uint32_t mw_xchg32(uint32_t* w, uint32_t v) {
  return xchg(w, v);
}
static inline uint64_t mw_xchg64(uint64_t* w, uint64_t v) {
  return xchg(w, v);
}
/* Of the words' own sizes: sync_set_bit() and its kind would reach over the end of 32 bits. */
static inline void mw_set_bit32(uint32_t* w, uint32_t bit) {
  asm volatile("lock; btsl %1, %0" : "+m"(*w) : "Ir"(bit) : "memory", "cc");
}
static inline void mw_set_bit64(uint64_t* w, uint32_t bit) {
  asm volatile("lock; btsq %1, %0" : "+m"(*w) : "Jr"((uint64_t)bit) : "memory", "cc");
}
static inline bool mw_test_and_clear_bit32(uint32_t* w, uint32_t bit) {
  return GEN_BINARY_RMWcc("lock; btrl", *w, c, "Ir", bit);
}
static inline void mw_fence(void) {
  virt_mb();
}
/* Nothing of a copy may be read from shared memory again, hence the barriers. */
static inline void mw_shared_read(void* to, const void* shared, size_t n) {
  memcpy(to, shared, n);
  barrier();
}
static inline void mw_shared_write(void* shared, const void* from, size_t n) {
  memcpy(shared, from, n);
  barrier();
}

#else

static inline uint32_t mw_load_relaxed32(const uint32_t* w) {
  return __atomic_load_n(w, __ATOMIC_RELAXED);
}
static inline uint32_t mw_load_acquire32(const uint32_t* w) {
  return __atomic_load_n(w, __ATOMIC_ACQUIRE);
}
static inline uint32_t mw_load_seq32(const uint32_t* w) {
  return __atomic_load_n(w, __ATOMIC_SEQ_CST);
}
static inline uint64_t mw_load_seq64(const uint64_t* w) {
  return __atomic_load_n(w, __ATOMIC_SEQ_CST);
}
static inline void mw_store_relaxed32(uint32_t* w, uint32_t v) {
  __atomic_store_n(w, v, __ATOMIC_RELAXED);
}
static inline void mw_store_release32(uint32_t* w, uint32_t v) {
  __atomic_store_n(w, v, __ATOMIC_RELEASE);
}
static inline uint32_t mw_xchg32(uint32_t* w, uint32_t v) {
  return __atomic_exchange_n(w, v, __ATOMIC_SEQ_CST);
}
static inline uint64_t mw_xchg64(uint64_t* w, uint64_t v) {
  return __atomic_exchange_n(w, v, __ATOMIC_SEQ_CST);
}
static inline void mw_set_bit32(uint32_t* w, uint32_t bit) {
  (void)__atomic_fetch_or(w, (uint32_t)1 << bit, __ATOMIC_SEQ_CST);
}
static inline void mw_set_bit64(uint64_t* w, uint32_t bit) {
  (void)__atomic_fetch_or(w, (uint64_t)1 << bit, __ATOMIC_SEQ_CST);
}
static inline bool mw_test_and_clear_bit32(uint32_t* w, uint32_t bit) {
  const uint32_t mask = (uint32_t)1 << bit;
  return (__atomic_fetch_and(w, ~mask, __ATOMIC_SEQ_CST) & mask) != 0;
}
static inline void mw_fence(void) {
#ifdef __SANITIZE_THREAD__
  /* ThreadSanitizer knows no fences; a locked operation orders as much on x86. */
  static uint32_t word;
  (void)__atomic_fetch_add(&word, 1u, __ATOMIC_SEQ_CST);
#else
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}
static inline void mw_shared_read(void* to, const void* shared, size_t n) {
  memcpy(to, shared, n);
  __asm__ volatile("" : : : "memory");
}
static inline void mw_shared_write(void* shared, const void* from, size_t n) {
  memcpy(shared, from, n);
  __asm__ volatile("" : : : "memory");
}

#endif
