// strangers.h - connections that have not shown the session's token yet: how many there may be, how
// long, and how fast they may come.
//
// PROBLEM     Any process that reaches the address can connect, stay silent, leave, and come again
//             thousands of times a second. It must keep no process of the session out, and use up
//             neither the driver's descriptors nor its time.
// PROMISE     At most so many in all and of one user. Of too many the oldest of that user goes who has
//             most of them. Who says nothing for kPatienceMs goes as well. Connections that come to
//             nothing cost at most kWastedPerMs of them in a millisecond; more wait in the kernel.
// WAY         The caller reads what a connection says when it accepts it, and once more before it
//             ends it for another one. So a process that asks at once, as the shim does, is never in
//             anybody's way, and is answered however many others are silent.
// THREADS     One. No system calls.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>

namespace mw {

class Strangers {
 public:
  static constexpr size_t kMost = 1024;
  static constexpr int64_t kPatienceMs = 10'000;
  static constexpr int64_t kWastedPerMs = 10;
  static constexpr int64_t kWastedAtOnce = 128;

  explicit Strangers(size_t most = kMost) : most_(std::max<size_t>(most, 2)) {}

  size_t most() const { return most_; }
  size_t most_of_user() const { return most_ / 2; }
  size_t size() const { return since_.size(); }
  bool contains(uint32_t id) const { return since_.contains(id); }

  // Ids grow: the smallest is the oldest.
  void add(uint32_t id, uint32_t uid, int64_t now_ms) {
    since_[id] = {uid, now_ms};
    of_user_[uid].insert(id);
  }
  void remove(uint32_t id) {
    const auto it = since_.find(id);
    if (it == since_.end()) return;
    const auto user = of_user_.find(it->second.uid);
    user->second.erase(id);
    if (user->second.empty()) of_user_.erase(user);
    since_.erase(it);
  }

  // The one that has to go before one of this user comes. 0: there is room.
  uint32_t in_the_way_of(uint32_t uid) const {
    const auto user = of_user_.find(uid);
    if (user != of_user_.end() && user->second.size() >= most_of_user())
      return *user->second.begin();
    if (since_.size() < most_) return 0;
    const auto largest = std::max_element(
        of_user_.begin(), of_user_.end(),
        [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
    return *largest->second.begin();
  }
  // One that was silent for too long; 0: none was.
  uint32_t overdue(int64_t now_ms) const {
    return since_.empty() || due_ms() > now_ms ? 0 : since_.begin()->first;
  }
  // When the next one will be. Requires: size() != 0.
  int64_t due_ms() const { return since_.begin()->second.since_ms + kPatienceMs; }

  // A connection came to nothing.
  void count_wasted() { --left_; }
  // Whether another one may be accepted now.
  bool may_come(int64_t now_ms) {
    if (now_ms > filled_ms_) {
      left_ = std::min(kWastedAtOnce, left_ + (now_ms - filled_ms_) * kWastedPerMs);
      filled_ms_ = now_ms;
    }
    return left_ > 0;
  }

 private:
  struct Since {
    uint32_t uid;
    int64_t since_ms;
  };
  size_t most_;
  std::map<uint32_t, Since> since_;
  std::map<uint32_t, std::set<uint32_t>> of_user_;
  int64_t left_ = kWastedAtOnce;
  int64_t filled_ms_ = 0;
};

}  // namespace mw
