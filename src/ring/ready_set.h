// ready_set.h - both ends of a struct mw_ready_set (abi/mw_ready_set.h tells the story).
//
// One consumer drains the whole set at once (drain); several that share it look first and then take
// members one by one (look, take).
//
// TRUST       Any member may appear at any time; the consumer checks each against its own tables.
//             drain() does work bounded by the size of the set, whatever the other side stores.
// ORDERING    Everything is seq_cst, so one total order holds all of it. add(): set level 0, 1, 2
//             (or see them set), read sleepers, swap rung. Consumer: sleepers up, clear rung, look
//             at top, sleep. Weaken any of these and a wake-up is lost (tests/model). A bit seen as
//             already set is one that a drain has not taken yet, because drain clears upper levels
//             before lower ones. On x86 the loads are plain ones; the cost is one locked operation
//             for an add.
// THREADS     Any number of adders and drainers, in any process.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "abi/mw_ready_set.h"
#include "ring/atomics.h"

namespace mw {

// Header: mw_ready_set or, in a model, a structure with the same members.
template <class Atomics = StdAtomics, class Header = mw_ready_set, class Word = uint64_t>
class BasicReadySet {
 public:
  BasicReadySet() = default;
  BasicReadySet(Header* h, Word* words, uint32_t bits) : h_(h), words_(words), bits_(bits) {}

  // Adds member i. True if a consumer sleeps and the caller has to ring its doorbell.
  bool add(uint32_t i) {
    set(i);
    return need_ring();
  }

  // Adds without a look at sleepers: by a consumer that puts back what it could not handle.
  void put_back(uint32_t i) { set(i); }

  // True if a consumer sleeps that nobody has rung for yet; the caller then has to ring.
  bool need_ring() {
    if (Atomics::load_seq(h_->sleepers) == 0) return false;
    return Atomics::exchange(h_->rung, 1u) == 0;
  }

  bool empty() { return Atomics::load_seq(h_->top) == 0; }

  // For one of several consumers that leaves, with or without a member: another one that sleeps may
  // have been told of none that is left. True: the caller has to ring.
  bool pass_on() { return !empty() && need_ring(); }

  // Takes members until `take(member)` returns false; that one and the rest stay in the set.
  // Returns false if members were left.
  template <class Take>
  bool drain(Take&& take) {
    if (Atomics::load_seq(h_->top) == 0) return true;
    uint64_t top = Atomics::exchange(h_->top, uint64_t{0});
    while (top != 0) {
      const uint32_t t = static_cast<uint32_t>(std::countr_zero(top));
      top &= top - 1;
      uint64_t mid = Atomics::exchange(h_->mid[t], uint64_t{0});
      while (mid != 0) {
        const uint32_t m = t * 64 + static_cast<uint32_t>(std::countr_zero(mid));
        mid &= mid - 1;
        if (m >= word_count()) continue;  // a lie: there is no such word
        uint64_t low = Atomics::exchange(words_[m], uint64_t{0});
        while (low != 0) {
          const uint32_t i = m * 64 + static_cast<uint32_t>(std::countr_zero(low));
          if (i < bits_ && !take(i)) {
            Atomics::fetch_or(words_[m], low);
            Atomics::fetch_or(h_->mid[t], mid | (uint64_t{1} << (m & 63)));
            Atomics::fetch_or(h_->top, top | (uint64_t{1} << t));
            return false;
          }
          low &= low - 1;
        }
      }
    }
    return true;
  }

  // Looks for members in [from, to), at most `most`, in ascending order; they stay in the set.
  // Returns how many were found; fewer than `most` are all of them. Requires: to <= bits().
  template <class Out>
  uint32_t look(uint32_t from, uint32_t to, uint32_t most, Out&& out) {
    if (from >= to || most == 0) return 0;
    uint32_t found = 0;
    uint64_t top = Atomics::load_seq(h_->top) & range_mask(from / 4096, (to - 1) / 4096, 0);
    for (; top != 0; top &= top - 1) {
      const auto t = static_cast<uint32_t>(std::countr_zero(top));
      uint64_t mid = Atomics::load_seq(h_->mid[t]);
      if (mid == 0) forget_empty_top(t);
      mid &= range_mask(from / 64, (to - 1) / 64, t);
      for (; mid != 0; mid &= mid - 1) {
        const uint32_t m = t * 64 + static_cast<uint32_t>(std::countr_zero(mid));
        uint64_t low = Atomics::load_seq(words_[m]);
        if (low == 0) forget_empty_word(m);
        low &= range_mask(from, to - 1, m);
        for (; low != 0; low &= low - 1) {
          out(m * 64 + static_cast<uint32_t>(std::countr_zero(low)));
          if (++found == most) return found;
        }
      }
    }
    return found;
  }

  // Takes one member. False: another consumer was first. News that comes later adds it again.
  bool take(uint32_t i) {
    const uint64_t bit = uint64_t{1} << (i & 63);
    const uint64_t before = Atomics::fetch_and(words_[i / 64], ~bit);
    if (before == bit) forget_empty_word(i / 64);
    return (before & bit) != 0;
  }

  // Whether i is a member already: an add would not change its turn.
  bool has(uint32_t i) const {
    return (Atomics::load_relaxed(words_[i / 64]) >> (i & 63) & 1) != 0;
  }

  // Announces a sleep. True: sleep now, and call wake() afterwards whatever the reason for waking.
  // False: there is work, do not sleep (wake() is not to be called).
  bool prepare_sleep() {
    Atomics::fetch_add(h_->sleepers, 1u);
    Atomics::exchange(h_->rung, 0u);
    if (Atomics::load_seq(h_->top) == 0) return true;
    Atomics::fetch_add(h_->sleepers, ~0u);
    return false;
  }
  void wake() {
    Atomics::fetch_add(h_->sleepers, ~0u);
    Atomics::exchange(h_->rung, 0u);  // a drain that follows sees what was added while rung was 1
  }

  // A consumer that has nothing to do says so while it waits awake; before it drains, it says no.
  void watch(bool on) { Atomics::exchange(h_->watched, on ? 1u : 0u); }

  // There is none any more, or none yet: what a predecessor said of itself holds no longer.
  void forget_consumer() {
    Atomics::exchange(h_->sleepers, 0u);
    Atomics::exchange(h_->rung, 0u);
    Atomics::exchange(h_->watched, 0u);
  }

  // A producer wants rests and turns to be exact, for good.
  void ask() {
    if (Atomics::load_relaxed(h_->asked) == 0) Atomics::exchange(h_->asked, 1u);
  }
  bool is_asked() const { return Atomics::load_relaxed(h_->asked) != 0; }
  void end_turn() {
    if (is_asked()) Atomics::fetch_add(h_->turns, 1u);
  }
  uint32_t turns() const { return Atomics::load_acquire(h_->turns); }

  // True while the consumer has nothing left to do: it sleeps or watches. The set first: one that
  // was emptied by a drain shows the flags of that drain.
  bool consumer_rests() {
    if (Atomics::load_seq(h_->top) != 0) return false;
    return Atomics::load_seq(h_->watched) != 0 ||
           (Atomics::load_seq(h_->sleepers) != 0 && Atomics::load_seq(h_->rung) == 0);
  }

  // Somebody sleeps although there are members: he has been rung for, or is about to be.
  bool keeps_waiting() {
    return Atomics::load_seq(h_->top) != 0 && Atomics::load_seq(h_->sleepers) != 0;
  }
  bool is_rung() const { return Atomics::load_relaxed(h_->rung) != 0; }
  // The consumer looks by itself, and its sleep means nothing.
  bool is_watched() const { return Atomics::load_relaxed(h_->watched) != 0; }

  void count_repair() { Atomics::fetch_add(h_->repairs, 1u); }
  uint32_t repairs() const { return Atomics::load_relaxed(h_->repairs); }

  // A consumer that never sleeps but wants to be rung for: the next add rings again.
  void clear_rung() { Atomics::exchange(h_->rung, 0u); }
  // Counts a consumer as asleep for good, whatever is in the set.
  void stay_asleep() { Atomics::fetch_add(h_->sleepers, 1u); }

  uint32_t bits() const { return bits_; }

 private:
  uint32_t word_count() const { return (bits_ + 63) / 64; }

  // The bits of word `word` of a level that stand for [first, last].
  static uint64_t range_mask(uint32_t first, uint32_t last, uint32_t word) {
    uint64_t mask = ~uint64_t{0};
    if (first / 64 == word) mask &= ~uint64_t{0} << (first & 63);
    if (last / 64 == word) mask &= ~uint64_t{0} >> (63 - (last & 63));
    return first / 64 <= word && word <= last / 64 ? mask : 0;
  }
  static void set_bit(Word& w, uint64_t bit) {
    if ((Atomics::load_seq(w) & bit) == 0) Atomics::fetch_or(w, bit);
  }
  // Word m was seen empty: clears the bits above it. An adder that came in between saw them set and
  // relies on them, so the word is looked at again afterwards.
  void forget_empty_word(uint32_t m) {
    const uint32_t t = m / 64;
    const uint64_t bit = uint64_t{1} << (m & 63);
    const uint64_t before = Atomics::fetch_and(h_->mid[t], ~bit);
    if (Atomics::load_seq(words_[m]) != 0) {
      Atomics::fetch_or(h_->mid[t], bit);
      set_bit(h_->top, uint64_t{1} << t);
    } else if ((before & ~bit) == 0) {
      forget_empty_top(t);
    }
  }
  void forget_empty_top(uint32_t t) {
    const uint64_t bit = uint64_t{1} << t;
    Atomics::fetch_and(h_->top, ~bit);
    if (Atomics::load_seq(h_->mid[t]) != 0) Atomics::fetch_or(h_->top, bit);
  }
  void set(uint32_t i) {
    // Level 0 always with a read-modify-write: it publishes what the news is about.
    Atomics::fetch_or(words_[i / 64], uint64_t{1} << (i & 63));
    set_bit(h_->mid[i / 4096], uint64_t{1} << (i / 64 & 63));
    set_bit(h_->top, uint64_t{1} << (i / 4096));
  }

  Header* h_ = nullptr;
  Word* words_ = nullptr;
  uint32_t bits_ = 0;
};

// The sleep of a consumer of two sets with one doorbell, which owes rings to sleepers of other sets:
// `ring_others` pays them first, because the consumer that waits does it no more. There is no wait if
// one of the sets has work.
template <class Set, class RingOthers, class Wait>
void sleep_in(Set& first, Set& second, RingOthers&& ring_others, Wait&& wait) {
  ring_others();
  if (!first.prepare_sleep()) return;
  if (second.prepare_sleep()) {
    wait();
    second.wake();
  }
  first.wake();
}

using ReadySet = BasicReadySet<>;

}  // namespace mw
