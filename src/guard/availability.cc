#include "guard/availability.h"

namespace mw::guard {

const char* to_string(Fate f) {
  constexpr const char* kNames[] = {"served", "late", "slow", "refused", "timeout"};
  return kNames[static_cast<size_t>(f)];
}

bool Availability::add(const ProbeResult& r, bool pressed) {
  const Service before = state_;
  last_ = r;
  if (r.fate == Fate::served) {
    bad_ = no_answer_ = 0;
    if (good_since_ns_ == 0) good_since_ns_ = r.begun_ns;
    if (state_ == Service::denied) state_ = Service::degraded;
    if (r.known_ns - good_since_ns_ >= int64_t{rules_.recovered_s} * 1'000'000'000)
      state_ = Service::served;
    if (state_ == Service::served) bad_since_ns_ = 0;
    return state_ != before;
  }
  good_since_ns_ = 0;
  if (bad_since_ns_ == 0) bad_since_ns_ = r.begun_ns;
  // A probe that is late was counted when it became so.
  if (r.fate == Fate::late || r.fate == Fate::refused) ++bad_;
  if (r.fate == Fate::timeout || r.fate == Fate::refused) ++no_answer_;
  if (r.fate == Fate::slow) no_answer_ = 0;
  if (no_answer_ >= rules_.bad_in_a_row)
    state_ = Service::denied;
  else if (state_ == Service::served && (bad_ >= rules_.bad_in_a_row || (bad_ > 0 && pressed)))
    state_ = Service::degraded;
  return state_ != before;
}

}  // namespace mw::guard
