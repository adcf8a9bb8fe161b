#include "netflow/tls.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#include "base/hex.h"
#include "base/unique_fd.h"

namespace mw::netflow {
namespace {

bool parse(std::span<const uint8_t> line, Token& out) {
  return parse_hex({reinterpret_cast<const char*>(line.data()), line.size()}, out);
}

}  // namespace

Result<Token> read_token(const std::string& path) {
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (!fd) return Error{Fault::sys, errno, "opening the token file"};
  struct stat st {};
  if (::fstat(fd.get(), &st) < 0) return Error{Fault::sys, errno, "fstat of the token file"};
  if (!S_ISREG(st.st_mode) || (st.st_mode & 077) != 0)
    return Error{Fault::limit, 0, "the token file must be a file that only its owner can read"};
  uint8_t text[kTokenLine + 1];
  const ssize_t n = ::read(fd.get(), text, sizeof text);
  const size_t length = n > 0 ? static_cast<size_t>(n) : 0;
  Token token{};
  if (length < 2 * kTokenBytes || length > kTokenLine ||
      (length == kTokenLine && text[2 * kTokenBytes] != '\n') ||
      !parse({text, 2 * kTokenBytes}, token))
    return Error{Fault::limit, 0, "the token file must hold 64 hexadecimal digits in one line"};
  return token;
}

bool token_matches(std::span<const uint8_t> line, const Token& token) {
  Token shown{};
  return line.size() == kTokenLine && line.back() == '\n' &&
         parse(line.first(2 * kTokenBytes), shown) &&
         CRYPTO_memcmp(shown.data(), token.data(), token.size()) == 0;
}

TlsConnection::~TlsConnection() {
  SSL_free(ssl_);
}

Error TlsConnection::failure(int result) {
  wants_write_ = false;
  const int code = SSL_get_error(ssl_, result);
  ERR_clear_error();
  switch (code) {
    case SSL_ERROR_WANT_WRITE:
      wants_write_ = true;
      return {Fault::would_block, 0, "TLS"};
    case SSL_ERROR_WANT_READ:
      return {Fault::would_block, 0, "TLS"};
    case SSL_ERROR_ZERO_RETURN:
    case SSL_ERROR_SYSCALL:
      return {Fault::shutdown, 0, "TLS"};
    default:
      return {Fault::peer, 0, "what it sends is not TLS, or not ours"};
  }
}

Result<size_t> TlsConnection::read(std::span<uint8_t> room) {
  size_t n = 0;
  ERR_clear_error();
  const int result = SSL_read_ex(ssl_, room.data(), room.size(), &n);
  if (result <= 0) return failure(result);
  wants_write_ = false;
  return n;
}

Result<size_t> TlsConnection::write(std::span<const uint8_t> bytes) {
  size_t n = 0;
  ERR_clear_error();
  const int result = SSL_write_ex(ssl_, bytes.data(), bytes.size(), &n);
  if (result <= 0) return failure(result);
  wants_write_ = false;
  return n;
}

Result<std::unique_ptr<TlsServer>> TlsServer::make(const std::string& certificate,
                                                   const std::string& key) {
  SSL_CTX* const context = SSL_CTX_new(TLS_server_method());
  if (context == nullptr) return Error{Fault::sys, ENOMEM, "TLS context"};
  std::unique_ptr<TlsServer> server{new TlsServer(context)};
  SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  // What is written partly is offered again from where it stopped, out of memory that may move.
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context, 0);
  const bool loaded = SSL_CTX_use_certificate_chain_file(context, certificate.c_str()) == 1 &&
                      SSL_CTX_use_PrivateKey_file(context, key.c_str(), SSL_FILETYPE_PEM) == 1 &&
                      SSL_CTX_check_private_key(context) == 1;
  ERR_clear_error();
  if (!loaded) return Error{Fault::limit, 0, "the TLS certificate and its key cannot be used"};
  return server;
}

TlsServer::~TlsServer() {
  SSL_CTX_free(context_);
}

std::unique_ptr<TlsConnection> TlsServer::accept(int socket) const {
  SSL* const ssl = SSL_new(context_);
  if (ssl == nullptr) return nullptr;
  std::unique_ptr<TlsConnection> connection{new TlsConnection(ssl)};
  if (SSL_set_fd(ssl, socket) != 1) return nullptr;
  SSL_set_accept_state(ssl);
  return connection;
}

}  // namespace mw::netflow
