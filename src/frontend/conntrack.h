// conntrack.h - has the kernel forget flows that began under other rules.
//
// PROBLEM     Rules for published ports see only the first packet of a flow. A client that sent before the
//             session was there, or to a session that had its addresses before, keeps its entry with each
//             packet, and never reaches the server.
// PROMISE     After the call the next packet of such a flow is a first one.
// THREADS     Any.
#pragma once

#include <vector>

#include "frontend/failure.h"
#include "frontend/plan.h"

namespace mw {

// Flows to the published ports of this host, and all from and to the INS's addresses.
Outcome<Done> forget_flows(const std::vector<Publish>& published, const AddressPlan& plan);

}  // namespace mw
