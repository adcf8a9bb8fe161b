#include "netflow/client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"

namespace mw::netflow {
namespace {

// No message of the server is longer; one that says so has lost its framing.
constexpr size_t kLongestMessage = 65536;

template <class Message, class Messages>
Status keep(Result<Message> message, Messages& in) {
  if (!message) return message.error();
  in.push_back(std::move(*message));
  return Ok{};
}

}  // namespace

Result<Client> Client::connect(const std::string& path, int timeout_ms) {
  // Through the folder's descriptor, so that a long path fits.
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const UniqueFd dir{::open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  if (!dir) return Error{Fault::sys, errno, "opening the session's folder"};
  const std::string name = "/proc/self/fd/" + std::to_string(dir.get()) + "/" +
                           (slash == std::string::npos ? path : path.substr(slash + 1));
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  if (name.size() >= sizeof a.sun_path) return Error{Fault::limit, 0, "the path is too long"};
  std::memcpy(a.sun_path, name.c_str(), name.size() + 1);
  UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (!fd) return Error{Fault::sys, errno, "socket"};
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) < 0)
    return Error{Fault::sys, errno, "connecting to the session"};
  return Client(std::move(fd), timeout_ms);
}

// A message that is complete.
Status Client::take(uint16_t sig, std::span<const uint8_t> message) {
  switch (sig) {
    case kSigObservation: {
      auto plain = decode_observation(message.first<kObservationBytes>());
      if (!plain) return plain.error();
      observations_.push_back({*plain});
      return Ok{};
    }
    case kSigExtendedObservation:
      return keep(decode_extended_observation(message), observations_);
    case kSigResponse:
      return keep(decode_response(message.first<kResponseBytes>()), responses_);
    case kSigFlow:
      return keep(decode_flow(message), flows_);
    case kSigSample:
      return keep(decode_sample(message), sampling_.samples);
    case kSigProcessSample:
      return keep(decode_process_sample(message), sampling_.processes);
    case kSigRule:
      return keep(decode_rule(message), rules_);
    default:
      break;
  }
  auto round = decode_round(message);
  if (!round) return round.error();
  sampling_.round = *round;
  rounds_.push_back(std::exchange(sampling_, {}));
  return Ok{};
}

// Takes whole messages off the front of what came.
Status Client::decode() {
  size_t at = 0;
  while (pending_.size() - at >= 6) {
    const std::span<const uint8_t> left = std::span<const uint8_t>(pending_).subspan(at);
    const uint16_t sig = signature_of(left);
    const size_t length = has_length(sig) ? stated_bytes(left) : message_bytes(sig);
    if (length < 6 || length > kLongestMessage || sig == kSigRequest || sig == kSigExtendedRequest)
      return Error{Fault::peer, 0, "the server sent something that is no message"};
    if (left.size() < length) break;
    if (Status taken = take(sig, left.first(length)); !taken) return taken;
    at += length;
  }
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<long>(at));
  return Ok{};
}

Status Client::read(int timeout_ms) {
  pollfd p{socket_.get(), POLLIN, 0};
  const int ready = ::poll(&p, 1, timeout_ms);
  if (ready < 0 && errno != EINTR) return Error{Fault::sys, errno, "poll"};
  if (ready <= 0) return Error{Fault::would_block, ready < 0 ? EINTR : ETIMEDOUT, "poll"};
  uint8_t room[65536];
  const ssize_t n = ::recv(socket_.get(), room, sizeof room, 0);
  if (n < 0) return Error{Fault::sys, errno, "recv"};
  if (n == 0) return Error{Fault::shutdown, 0, "the server closed the connection"};
  pending_.insert(pending_.end(), room, room + n);
  return decode();
}

Result<ExtendedObservation> Client::next(int timeout_ms) {
  while (observations_.empty())
    if (const Status got = read(timeout_ms); !got) return got.error();
  const ExtendedObservation first = observations_.front();
  observations_.pop_front();
  return first;
}

Result<SampledRound> Client::next_round(int timeout_ms) {
  const int64_t deadline = timeout_ms < 0 ? -1 : monotonic_ms() + timeout_ms;
  while (rounds_.empty()) {
    const int64_t left = deadline < 0 ? -1 : std::max<int64_t>(0, deadline - monotonic_ms());
    if (const Status got = read(static_cast<int>(left)); !got) return got.error();
  }
  SampledRound first = std::move(rounds_.front());
  rounds_.pop_front();
  return first;
}

Result<Response> Client::ask(Request request) {
  request.id = next_id_++;
  std::array<uint8_t, kRequestBytes> bytes;
  encode(request, bytes);
  return exchange(request.id, bytes);
}

Result<Response> Client::ask(ExtendedRequest request) {
  request.request.id = next_id_++;
  return exchange(request.request.id, encoded(request));
}

Result<std::vector<Rule>> Client::rules() {
  rules_.clear();
  Request list;
  list.name = static_cast<uint16_t>(Feature::rules);
  auto answer = ask(list);
  if (!answer) return answer.error();
  if (answer->status != 0)
    return Error{Fault::sys, static_cast<int>(answer->status), "listing the rules"};
  return std::exchange(rules_, {});
}

Result<Response> Client::exchange(uint32_t id, std::span<const uint8_t> request) {
  if (::send(socket_.get(), request.data(), request.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(request.size()))
    return Error{Fault::shutdown, errno, "sending a request"};
  const int64_t deadline = timeout_ms_ < 0 ? -1 : monotonic_ms() + timeout_ms_;
  for (;;) {
    const auto it = std::find_if(responses_.begin(), responses_.end(),
                                 [id](const Response& r) { return r.id == id; });
    if (it != responses_.end()) {
      const Response found = *it;
      responses_.erase(it);
      return found;
    }
    const int64_t left = deadline < 0 ? -1 : std::max<int64_t>(0, deadline - monotonic_ms());
    if (const Status got = read(static_cast<int>(left)); !got) return got.error();
  }
}

}  // namespace mw::netflow
