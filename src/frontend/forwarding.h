// forwarding.h - make the host forward packets to and from the INSs, and put everything back
// afterwards.
//
// A default host forwards nothing. Forwarding is turned on for the interfaces that exist, one by
// one (never globally: that would reset other settings), the old values are recorded, and the rules
// of every session drop what would otherwise start to flow between other interfaces (GuardedLinks).
//
// INVARIANTS  The record is written before the first setting is changed, and the rules that guard it are
//             in force by then. Settings that were already on are neither recorded nor guarded nor
//             touched.
// THREADS     Call under BaseLock.
#pragma once

#include <functional>
#include <string>

#include "frontend/failure.h"
#include "frontend/plan.h"

namespace mw {

// Turns on what is missing, for `link` and for the host's other interfaces. `guard` puts the rules in
// force that the interfaces need; without its success nothing is turned on.
using Guard = std::function<Outcome<Done>(const GuardedLinks&)>;
Outcome<Done> acquire_forwarding(const std::string& base, const std::string& link,
                                 const Guard& guard, const std::string& sys = "/proc/sys/net");

// The interfaces that were turned on and have not been turned off again.
GuardedLinks guarded_links(const std::string& base, const std::string& sys = "/proc/sys/net");

// Restores the recorded values: when the last isolated session goes, or the rules that guard them have gone.
Outcome<Done> release_forwarding(const std::string& base, const std::string& sys = "/proc/sys/net");

}  // namespace mw
