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

// As an engine sent it.
struct Asking {
  ExtendedRequest request;
  bool extended = false;  // else a plain request of version 1
  bool operator==(const Asking&) const = default;
};

class RequestStream {
 public:
  // Calls take(Asking) for each request that is complete, until it returns false (the rest of the
  // bytes is then left; the caller offers them again). Returns how many bytes were used.
  // Errors: peer (a signature that no engine may send, a message that cannot be).
  template <class Take>
  Result<size_t> feed(std::span<const uint8_t> bytes, Take&& take) {
    size_t used = 0;
    bool wanted = true;
    while (!broken_ && wanted && used < bytes.size()) {
      const size_t n = std::min(bytes.size() - used, needed() - held_);
      std::memcpy(partial_.data() + held_, bytes.data() + used, n);
      held_ += n;
      used += n;
      // Judged as soon as it is there: whoever speaks something else is not waited for.
      broken_ = !can_be();
      if (broken_ || held_ < needed()) continue;
      auto asking = decode();
      held_ = 0;
      broken_ = !asking;
      wanted = asking && take(*asking);
    }
    if (broken_) return Error{Fault::peer, 0, "a message that no engine sends"};
    return used;
  }
  // True between two messages.
  bool at_boundary() const { return held_ == 0; }

 private:
  static constexpr size_t kStatedAt = 6;  // then an extended request's length is known

  bool extended() const { return held_ >= 2 && signature_of(partial_) == kSigExtendedRequest; }
  // How much of this message has to be held to go on with it.
  size_t needed() const {
    if (!extended()) return held_ < 2 ? 2 : kRequestBytes;
    return held_ < kStatedAt ? kStatedAt : stated_bytes(partial_);
  }
  bool can_be() const {
    if (held_ < 2) return true;
    if (!extended()) return signature_of(partial_) == kSigRequest;
    if (held_ < kStatedAt) return true;
    const size_t stated = stated_bytes(partial_);
    return stated >= kExtendedRequestBytes && stated <= kMaxRequestBytes;
  }
  Result<Asking> decode() const {
    const std::span<const uint8_t> whole(partial_.data(), held_);
    if (extended()) {
      auto request = decode_extended_request(whole);
      if (!request) return request.error();
      return Asking{std::move(*request), true};
    }
    auto request = decode_request(whole.first<kRequestBytes>());
    if (!request) return request.error();
    Asking plain;
    plain.request.request = *request;
    return plain;
  }

  std::array<uint8_t, kMaxRequestBytes> partial_{};
  size_t held_ = 0;
  bool broken_ = false;
};

}  // namespace mw::netflow
