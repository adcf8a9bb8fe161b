#include "ins/policy/wishes.h"

#include <sys/socket.h>

#include <algorithm>

namespace mw {

void Wishes::set_option(const InsRequest& r) {
  const std::lock_guard hold(lock_);
  std::erase_if(options_,
                [&r](const InsRequest& o) { return o.level == r.level && o.name == r.name; });
  options_.push_back(r);
  any_.store(true, std::memory_order_release);
}

void Wishes::apply_to(int stream_socket) const {
  const std::lock_guard hold(lock_);
  // A wish that held for the others holds here too, or the kernel has changed its mind.
  for (const InsRequest& o : options_)
    (void)::setsockopt(stream_socket, o.level, o.name, o.value, o.len);
}

void Wishes::block(const PeerAddress& a, bool on) {
  const std::lock_guard hold(lock_);
  if (on)
    blocked_.insert(a);
  else
    blocked_.erase(a);
  any_.store(true, std::memory_order_release);
}

bool Wishes::is_blocked(const PeerAddress& a) const {
  const std::lock_guard hold(lock_);
  return blocked_.count(a) != 0 && allowed_.count(a) == 0;
}

void Wishes::allow(const PeerAddress& a, bool on) {
  const std::lock_guard hold(lock_);
  if (on)
    allowed_.insert(a);
  else
    allowed_.erase(a);
  any_.store(true, std::memory_order_release);
}

bool Wishes::is_allowed(const PeerAddress& a) const {
  const std::lock_guard hold(lock_);
  return allowed_.count(a) != 0;
}

void Wishes::set_rate(bool out, const MinRate& rate) {
  const std::lock_guard hold(lock_);
  (out ? out_ : in_) = rate;
  any_.store(true, std::memory_order_release);
}

MinRate Wishes::rate(bool out) const {
  const std::lock_guard hold(lock_);
  return out ? out_ : in_;
}

void Wishes::set_cap(const PeerAddress* peer, uint32_t connections) {
  const std::lock_guard hold(lock_);
  if (peer == nullptr)
    cap_ = connections;
  else if (connections == 0)
    caps_.erase(*peer);
  else
    caps_[*peer] = connections;
  const bool wanted = cap_ != 0 || !caps_.empty();
  if (wanted == (census_ != 0)) return;
  if (wanted && ++last_census_ == 0) ++last_census_;
  census_ = wanted ? last_census_ : 0;
  connections_.clear();
  any_.store(true, std::memory_order_release);
}

Wishes::Admission Wishes::admit(const PeerAddress& peer) {
  const std::lock_guard hold(lock_);
  Admission a;
  const bool allowed = allowed_.count(peer) != 0;
  a.refused = !allowed && blocked_.count(peer) != 0;
  if (a.refused) return a;
  if (!allowed) {
    a.in = in_;
    a.out = out_;
  }
  if (census_ == 0) return a;
  const auto own = caps_.find(peer);
  const uint32_t cap = own != caps_.end() ? own->second : cap_;
  uint32_t& there = connections_[peer];
  a.refused = !allowed && cap != 0 && there >= cap;
  if (a.refused) return a;
  ++there;
  a.census = census_;
  return a;
}

uint32_t Wishes::count(const PeerAddress& peer) {
  const std::lock_guard hold(lock_);
  if (census_ != 0) ++connections_[peer];
  return census_;
}

uint32_t Wishes::census() const {
  const std::lock_guard hold(lock_);
  return census_;
}

uint32_t Wishes::forget() {
  const std::lock_guard hold(lock_);
  const auto blocked = static_cast<uint32_t>(blocked_.size());
  blocked_.clear();
  allowed_.clear();
  in_ = out_ = MinRate{};
  cap_ = 0;
  caps_.clear();
  connections_.clear();
  census_ = 0;
  return blocked;
}

void Wishes::gone(const PeerAddress& peer, uint32_t census) {
  const std::lock_guard hold(lock_);
  if (census != census_) return;
  const auto it = connections_.find(peer);
  if (it != connections_.end() && --it->second == 0) connections_.erase(it);
}

}  // namespace mw
