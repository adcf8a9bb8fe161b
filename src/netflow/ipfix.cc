#include "netflow/ipfix.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "netflow/address.h"

namespace mw::netflow {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kFirstPatience = kSecond;
constexpr uint64_t kMostPatience = 30 * kSecond;
constexpr size_t kUdpBytes = 1400;  // below every usual path MTU, as RFC 7011 wants it
constexpr size_t kTcpBytes = 16384;

constexpr uint16_t kVersion = 10;
constexpr size_t kHeaderBytes = 16;
constexpr size_t kSetHeaderBytes = 4;
constexpr uint16_t kTemplateSet = 2;
constexpr uint16_t kTemplateV4 = 256;
constexpr uint16_t kTemplateV6 = 257;
constexpr uint32_t kReverseEnterprise = 29305;
constexpr uint16_t kEnterpriseBit = 0x8000;

// IANA's numbers of information elements, with their bytes here. The order is that of a record.
struct Element {
  uint16_t id;
  uint16_t bytes;
  bool reverse;
};
constexpr Element kElements[] = {
    {152, 8, false},  // flowStartMilliseconds
    {153, 8, false},  // flowEndMilliseconds
    {1, 8, false},    // octetDeltaCount
    {1, 8, true},     //
    {2, 8, false},    // packetDeltaCount
    {2, 8, true},     //
    {148, 8, false},  // flowId
    {7, 2, false},    // sourceTransportPort
    {11, 2, false},   // destinationTransportPort
    {4, 1, false},    // protocolIdentifier
    {6, 1, false},    // tcpControlBits
    {136, 1, false},  // flowEndReason
    {239, 1, false},  // biflowDirection
};
constexpr Element kAddressesV4[] = {{8, 4, false}, {12, 4, false}};     // source, destination
constexpr Element kAddressesV6[] = {{27, 16, false}, {28, 16, false}};  //
constexpr uint8_t kBiflowInitiator = 1;

constexpr uint8_t kFin = 0x01;
constexpr uint8_t kSyn = 0x02;
constexpr uint8_t kRst = 0x04;
constexpr uint8_t kPsh = 0x08;
constexpr uint8_t kAck = 0x10;

template <class T>
void put_number(std::vector<uint8_t>& out, T value) {
  for (int shift = 8 * (static_cast<int>(sizeof(T)) - 1); shift >= 0; shift -= 8)
    out.push_back(static_cast<uint8_t>(static_cast<uint64_t>(value) >> shift));
}

// Also of one that nobody knows yet.
bool fits_v4(const Address& a) {
  return unmapped(a).af == 4 ||
         std::all_of(a.bytes.begin(), a.bytes.end(), [](uint8_t b) { return b == 0; });
}

void put_v4(std::vector<uint8_t>& out, const Address& a) {
  const Address v4 = unmapped(a);
  out.insert(out.end(), v4.bytes.begin(), v4.bytes.begin() + 4);
}

void put_v6(std::vector<uint8_t>& out, const Address& a) {
  if (a.af == 6) {
    out.insert(out.end(), a.bytes.begin(), a.bytes.end());
    return;
  }
  out.insert(out.end(), kMappedPrefix.begin(), kMappedPrefix.end());
  out.insert(out.end(), a.bytes.begin(), a.bytes.begin() + 4);
}

// What is known of the flags that the packets had, of both directions.
uint8_t control_bits(const FlowRecord& r) {
  if (r.protocol != Protocol::tcp) return 0;
  // Of an attempt to which nobody said anything there was one packet, again and again.
  uint8_t bits = std::string_view(state_of(r)) == "S0" ? 0 : kAck;
  if (r.number == 0 && r.history.starts_with('S')) bits |= kSyn;
  if (r.bytes_in != 0 || r.bytes_out != 0) bits |= kPsh;
  if ((r.fresh & (kConnPeerFin | kConnOurFin)) != 0) bits |= kFin;
  if ((r.fresh & (kConnPeerRst | kConnOurRst)) != 0) bits |= kRst;
  return bits;
}

void put_record(std::vector<uint8_t>& out, const FlowRecord& r, bool v4) {
  const auto address = v4 ? put_v4 : put_v6;
  address(out, r.originator().address);
  address(out, r.responder().address);
  put_number(out, r.start_ns / 1'000'000);
  put_number(out, r.end_ns / 1'000'000);
  put_number(out, r.inbound ? r.bytes_in : r.bytes_out);
  put_number(out, r.inbound ? r.bytes_out : r.bytes_in);
  put_number(out, r.inbound ? r.calls_in : r.calls_out);
  put_number(out, r.inbound ? r.calls_out : r.calls_in);
  put_number(out, r.socket);
  put_number(out, r.originator().port);
  put_number(out, r.responder().port);
  put_number(out, static_cast<uint8_t>(r.protocol));
  put_number(out, control_bits(r));
  put_number(out, static_cast<uint8_t>(r.reason));
  put_number(out, kBiflowInitiator);
}

void put_element(std::vector<uint8_t>& out, const Element& e) {
  put_number(out, static_cast<uint16_t>(e.id | (e.reverse ? kEnterpriseBit : 0)));
  put_number(out, e.bytes);
  if (e.reverse) put_number(out, kReverseEnterprise);
}

void put_template(std::vector<uint8_t>& out, uint16_t id, std::span<const Element> addresses) {
  put_number(out, id);
  put_number(out, static_cast<uint16_t>(addresses.size() + std::size(kElements)));
  for (const Element& e : addresses) put_element(out, e);
  for (const Element& e : kElements) put_element(out, e);
}

void put_set(std::vector<uint8_t>& out, uint16_t id, const std::vector<uint8_t>& content) {
  if (content.empty()) return;
  put_number(out, id);
  put_number(out, static_cast<uint16_t>(kSetHeaderBytes + content.size()));
  out.insert(out.end(), content.begin(), content.end());
}

void put_header(std::vector<uint8_t>& out, size_t content, uint32_t now_s, uint32_t sequence,
                uint32_t domain) {
  put_number(out, kVersion);
  put_number(out, static_cast<uint16_t>(kHeaderBytes + content));
  put_number(out, now_s);
  put_number(out, sequence);
  put_number(out, domain);
}

uint32_t seconds(const Instant& now) {
  return static_cast<uint32_t>(now.realtime_ns / kSecond);
}

size_t set_bytes(const std::vector<uint8_t>& content) {
  return content.empty() ? 0 : kSetHeaderBytes + content.size();
}

}  // namespace

// ---- IpfixEncoder ----

bool IpfixEncoder::add(const FlowRecord& r) {
  const bool v4 = fits_v4(r.local.address) && fits_v4(r.remote.address);
  std::vector<uint8_t>& set = v4 ? v4_ : v6_;
  const size_t before = set.size();
  put_record(set, r, v4);
  if (kHeaderBytes + set_bytes(v4_) + set_bytes(v6_) > max_bytes_) {
    set.resize(before);
    return false;
  }
  ++records_;
  return true;
}

IpfixMessage IpfixEncoder::take(uint32_t now_s) {
  IpfixMessage m;
  m.records = records_;
  put_header(m.bytes, set_bytes(v4_) + set_bytes(v6_), now_s, sequence_, domain_);
  put_set(m.bytes, kTemplateV4, v4_);
  put_set(m.bytes, kTemplateV6, v6_);
  sequence_ += records_;
  records_ = 0;
  v4_.clear();
  v6_.clear();
  return m;
}

IpfixMessage IpfixEncoder::templates(uint32_t now_s) const {
  std::vector<uint8_t> set;
  put_template(set, kTemplateV4, kAddressesV4);
  put_template(set, kTemplateV6, kAddressesV6);
  IpfixMessage m;
  put_header(m.bytes, set_bytes(set), now_s, sequence_, domain_);
  put_set(m.bytes, kTemplateSet, set);
  return m;
}

// ---- IpfixExport ----

Result<std::unique_ptr<IpfixExport>> IpfixExport::make(const IpfixOptions& options) {
  const auto collector = parse_socket_address(options.collector);
  if (!collector || collector->family() == AF_UNIX)
    return Error{Fault::limit, 0, "the IPFIX collector is not ADDRESS:PORT"};
  return std::unique_ptr<IpfixExport>{new IpfixExport(options, *collector)};
}

IpfixExport::IpfixExport(const IpfixOptions& options, const SocketAddress& collector)
    : options_(options),
      collector_(collector),
      encoder_(options.domain, options.tcp ? kTcpBytes : kUdpBytes),
      patience_ns_(kFirstPatience) {}

void IpfixExport::open(const Instant& now) {
  const int type = options_.tcp ? SOCK_STREAM : SOCK_DGRAM;
  socket_ = UniqueFd{::socket(collector_.family(), type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (socket_ && ::connect(socket_.get(), collector_.get(), collector_.len) == 0)
    return opened(now);
  if (socket_ && errno == EINPROGRESS)
    state_ = State::connecting;
  else
    close(now);
}

void IpfixExport::opened(const Instant& now) {
  state_ = State::open;
  patience_ns_ = kFirstPatience;
  if (options_.tcp) encoder_ = IpfixEncoder(options_.domain, kTcpBytes);
  templates_due_ns_ = now.monotonic_ns;
}

void IpfixExport::close(const Instant& now) {
  for (const IpfixMessage& m : backlog_) counts_.dropped += m.records;
  backlog_.clear();
  backlog_bytes_ = sent_ = 0;
  socket_.reset();
  state_ = State::closed;
  retry_ns_ = now.monotonic_ns + patience_ns_;
  patience_ns_ = std::min(2 * patience_ns_, kMostPatience);
}

void IpfixExport::put(const FlowRecord& r, const Instant& now) {
  // It was told as silent, and nothing came since.
  if (r.number != 0 && r.bytes_in == 0 && r.bytes_out == 0 && !r.final()) return;
  if (state_ != State::open) {
    ++counts_.dropped;
    return;
  }
  if (encoder_.add(r)) return;
  send(encoder_.take(seconds(now)));
  (void)encoder_.add(r);  // fits into an empty one
}

void IpfixExport::flush(const Instant& now) {
  if (state_ == State::closed && now.monotonic_ns >= retry_ns_) open(now);
  if (state_ != State::open) return;
  const auto now_s = seconds(now);
  if (now.monotonic_ns >= templates_due_ns_) {
    // A stream loses none.
    templates_due_ns_ =
        options_.tcp ? UINT64_MAX : now.monotonic_ns + options_.template_s * kSecond;
    send(encoder_.templates(now_s));
  }
  if (!encoder_.empty()) send(encoder_.take(now_s));
  if (options_.tcp) drain(now);
}

void IpfixExport::send(IpfixMessage message) {
  if (options_.tcp) {
    if (backlog_bytes_ + message.bytes.size() > kMaxBacklog) {
      counts_.dropped += message.records;
      return;
    }
    backlog_bytes_ += message.bytes.size();
    backlog_.push_back(std::move(message));
    return;
  }
  // ECONNREFUSED is the answer to an earlier one; this one goes out at the second try.
  ssize_t n = ::send(socket_.get(), message.bytes.data(), message.bytes.size(), MSG_NOSIGNAL);
  if (n < 0 && errno == ECONNREFUSED)
    n = ::send(socket_.get(), message.bytes.data(), message.bytes.size(), MSG_NOSIGNAL);
  if (n < 0) {
    counts_.dropped += message.records;
    return;
  }
  counts_.records += message.records;
  ++counts_.messages;
}

void IpfixExport::drain(const Instant& now) {
  while (!backlog_.empty()) {
    const IpfixMessage& m = backlog_.front();
    const ssize_t n =
        ::send(socket_.get(), m.bytes.data() + sent_, m.bytes.size() - sent_, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) return close(now);
    sent_ += static_cast<size_t>(n);
    if (sent_ < m.bytes.size()) continue;
    counts_.records += m.records;
    ++counts_.messages;
    backlog_bytes_ -= m.bytes.size();
    sent_ = 0;
    backlog_.pop_front();
  }
}

short IpfixExport::events() const {
  const bool write = state_ == State::connecting || !backlog_.empty();
  return static_cast<short>(POLLIN | (write ? POLLOUT : 0));
}

void IpfixExport::handle_events(const Instant& now) {
  if (state_ == State::connecting) {
    int err = 0;
    socklen_t size = sizeof err;
    sockaddr_storage peer{};
    socklen_t peer_size = sizeof peer;
    if (::getsockopt(socket_.get(), SOL_SOCKET, SO_ERROR, &err, &size) < 0 || err != 0)
      return close(now);
    if (::getpeername(socket_.get(), reinterpret_cast<sockaddr*>(&peer), &peer_size) < 0) return;
    opened(now);
    return flush(now);
  }
  // A collector says nothing; an end of the stream is the end.
  char said[256];
  const ssize_t n = ::recv(socket_.get(), said, sizeof said, 0);
  if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return close(now);
  drain(now);
}

}  // namespace mw::netflow
