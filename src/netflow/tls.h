// tls.h - TLS on a non-blocking socket, and the token behind it.
//
// TRUST       The other end is a stranger until its token was compared, in constant time.
// THREADS     One.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"

struct ssl_ctx_st;
struct ssl_st;

namespace mw::netflow {

// After the handshake an engine sends 64 hexadecimal digits and a newline, and nothing before.
constexpr size_t kTokenBytes = 32;
using Token = std::array<uint8_t, kTokenBytes>;

// The first line of a file that nobody else may read: 64 hexadecimal digits.
// Errors: limit (not such a file, or others may read it), sys.
Result<Token> read_token(const std::string& path);
// Nothing but the digits and the newline may stand in `line`.
bool token_matches(std::span<const uint8_t> line, const Token& token);
constexpr size_t kTokenLine = 2 * kTokenBytes + 1;

class TlsConnection {
 public:
  ~TlsConnection();
  TlsConnection(const TlsConnection&) = delete;
  TlsConnection& operator=(const TlsConnection&) = delete;

  // As recv() and send(). Errors: would_block (wants_write() says what for), shutdown, peer.
  Result<size_t> read(std::span<uint8_t> room);
  Result<size_t> write(std::span<const uint8_t> bytes);
  bool wants_write() const { return wants_write_; }

 private:
  friend class TlsServer;
  explicit TlsConnection(ssl_st* ssl) : ssl_(ssl) {}
  Error failure(int result);

  ssl_st* ssl_;
  bool wants_write_ = false;
};

class TlsServer {
 public:
  // TLS 1.3 with this certificate (chain) and key, both PEM. Errors: limit (they do not fit), sys.
  static Result<std::unique_ptr<TlsServer>> make(const std::string& certificate,
                                                 const std::string& key);
  ~TlsServer();
  TlsServer(const TlsServer&) = delete;
  TlsServer& operator=(const TlsServer&) = delete;

  // For an accepted socket, which stays the caller's. Null: no memory.
  std::unique_ptr<TlsConnection> accept(int socket) const;

 private:
  explicit TlsServer(ssl_ctx_st* context) : context_(context) {}
  ssl_ctx_st* context_;
};

}  // namespace mw::netflow
