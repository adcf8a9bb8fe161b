// framing.h - requests out of a byte stream, however it was cut into pieces.
//
// TRUST       The bytes are an engine's. Nothing is kept of it beyond one message.
// INVARIANTS  After an error nothing more comes out: a stream whose framing is lost cannot be found
//             again, and its connection has to be closed.
#pragma once

#include <algorithm>
#include <cstring>

#include "netflow/wire.h"

namespace mw::netflow {

class RequestStream {
 public:
  // Calls take(request) for each request that is complete, until it returns false (the rest of the
  // bytes is then left; the caller offers them again). Returns how many bytes were used.
  // Errors: peer (a signature that no engine may send).
  template <class Take>
  Result<size_t> feed(std::span<const uint8_t> bytes, Take&& take) {
    size_t used = 0;
    bool wanted = true;
    while (!broken_ && wanted && used < bytes.size()) {
      const size_t n = std::min(bytes.size() - used, partial_.size() - held_);
      std::memcpy(partial_.data() + held_, bytes.data() + used, n);
      held_ += n;
      used += n;
      // Judged as soon as it is there: whoever speaks something else is not waited for.
      broken_ = held_ >= 2 && signature() != kSigRequest;
      if (broken_ || held_ < partial_.size()) continue;
      held_ = 0;
      auto request = decode_request(partial_);
      wanted = request && take(*request);
    }
    if (broken_) return Error{Fault::peer, 0, "an unknown signature"};
    return used;
  }
  // True between two messages.
  bool at_boundary() const { return held_ == 0; }
  uint16_t signature() const { return signature_of(partial_); }

 private:
  std::array<uint8_t, kRequestBytes> partial_{};
  size_t held_ = 0;
  bool broken_ = false;
};

}  // namespace mw::netflow
