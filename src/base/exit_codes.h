// exit_codes.h - exit statuses by which one of our programs tells another what happened.
#pragma once

namespace mw {

// mwins: the application's side broke the channel's protocol, so this INS stopped using it.
constexpr int kExitPoisoned = 3;

}  // namespace mw
