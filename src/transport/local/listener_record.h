// listener_record.h - what a record of a listener may say, wherever it comes from.
//
// PROBLEM     An INS describes its listeners, the driver keeps that, and a successor makes them again.
//             What an INS that was taken over wrote there must do no more in the successor than a call
//             of the application could.
// TRUST       The record is hostile on both ways.
#pragma once

#include "base/result.h"
#include "transport/local/control.h"

namespace mw {

// Checks every field, but not whether the slot is free. Errors: peer.
Status check_listener(const ControlListener& record, uint32_t slots);

}  // namespace mw
