// call.cc - parsing of script words and printing of results.
#include "call.h"

#include <arpa/inet.h>
#include <sys/mman.h>
#include <sys/un.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace sockagent {
namespace {

constexpr std::size_t kLongestPrintedBytes = 80;

std::uint64_t fnv1a(std::string_view bytes) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char byte : bytes) {
    hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3ULL;
  }
  return hash;
}

std::string hex(std::uint64_t value) {
  char digits[17];
  const auto result = std::to_chars(digits, digits + sizeof digits, value, 16);
  return {digits, result.ptr};
}

unsigned char hex_digit(char c) {
  if (c >= '0' && c <= '9') return static_cast<unsigned char>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned char>(c - 'a' + 10);
  throw ScriptError("bad hex digit");
}

std::string pattern(unsigned long seed, std::size_t length) {
  std::string bytes(length, '\0');
  std::uint64_t state = seed * 0x9e3779b97f4a7c15ULL + 1;
  for (char& byte : bytes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    byte = static_cast<char>(state >> 32);
  }
  return bytes;
}

std::uint16_t parse_port(std::string_view digits) {
  return htons(static_cast<std::uint16_t>(parse_number(digits)));
}

}  // namespace

const std::string& Call::text(std::size_t i) const {
  if (i >= args.size()) throw ScriptError(name + ": argument " + std::to_string(i) + " is missing");
  return args[i];
}

long Call::number(std::size_t i) const {
  return parse_number(text(i));
}

long Call::number(std::size_t i, long fallback) const {
  return i < args.size() ? number(i) : fallback;
}

long Call::option(std::string_view key, long fallback) const {
  const auto found = options.find(key);
  return found == options.end() ? fallback : parse_number(found->second);
}

void Reply::print(std::string_view words) {
  if (!text_.empty()) text_ += ' ';
  text_ += words;
}

void Reply::field(std::string_view key, std::string_view value) {
  print(std::string(key) + "=" + std::string(value));
}

void Reply::add(long result, int error) {
  print("= " + std::to_string(result));
  if (result < 0) {
    print(constant_name_of_errno(error));
  } else if (error != kSentinel) {
    field("errno-changed", constant_name_of_errno(error));
  }
}

void note_time(const Call& call, Reply& reply, Clock::time_point start) {
  if (!call.has("timed")) return;
  // The kernel counts some time limits in ticks: one that begins within a tick ends early by less.
  constexpr auto kTick = std::chrono::milliseconds(11);
  const auto elapsed = Clock::now() - start;
  const auto due = std::chrono::milliseconds(call.option("timed", 0));
  reply.field("took", elapsed + kTick < due       ? "less"
                      : elapsed > due + kPatience ? "too-much"
                                                  : "enough");
}

Call parse_call(std::string_view line) {
  Call call;
  while (!line.empty()) {
    const std::size_t space = std::min(line.find(' '), line.size());
    const std::string_view word = line.substr(0, space);
    line.remove_prefix(std::min(space + 1, line.size()));
    if (word.empty()) continue;
    const std::size_t equals = word.find('=');
    if (call.name.empty()) {
      call.name = word;
    } else if (equals != std::string_view::npos && equals > 0) {
      call.options.emplace(word.substr(0, equals), word.substr(equals + 1));
    } else {
      call.args.emplace_back(word);
    }
  }
  if (call.name.empty()) throw ScriptError("empty call");
  return call;
}

std::string parse_bytes(std::string_view word) {
  if (word.starts_with("x:")) {
    word.remove_prefix(2);
    std::string bytes;
    for (std::size_t i = 0; i + 1 < word.size(); i += 2) {
      bytes += static_cast<char>(hex_digit(word[i]) << 4 | hex_digit(word[i + 1]));
    }
    return bytes;
  }
  const std::size_t colon = word.rfind(':');
  if (word.starts_with("pat:") && colon > 3) {
    return pattern(static_cast<unsigned long>(parse_number(word.substr(4, colon - 4))),
                   static_cast<std::size_t>(parse_number(word.substr(colon + 1))));
  }
  if (word.starts_with("rep:") && colon == 5) {
    return std::string(static_cast<std::size_t>(parse_number(word.substr(colon + 1))), word[4]);
  }
  throw ScriptError("bad bytes '" + std::string(word) + "'");
}

std::string describe_bytes(std::string_view bytes) {
  if (bytes.size() > kLongestPrintedBytes) {
    return "<" + std::to_string(bytes.size()) + " bytes, hash " + hex(fnv1a(bytes)) + ">";
  }
  std::string text = "\"";
  for (const char c : bytes) {
    if (c >= ' ' && c <= '~' && c != '"' && c != '\\') {
      text += c;
    } else {
      const std::string digits = hex(static_cast<unsigned char>(c));
      text += "\\x" + (digits.size() == 1 ? "0" + digits : digits);
    }
  }
  return text + "\"";
}

Address parse_address(std::string_view word) {
  Address address;
  if (word == "unspec") {
    address.storage.ss_family = AF_UNSPEC;
    address.length = sizeof(sockaddr_in);
    return address;
  }
  if (word.starts_with("unix:")) {
    auto* un = reinterpret_cast<sockaddr_un*>(&address.storage);
    const std::string_view path = word.substr(5);
    if (path.size() >= sizeof un->sun_path) throw ScriptError("unix path too long");
    un->sun_family = AF_UNIX;
    std::memcpy(un->sun_path, path.data(), path.size());
    if (path.starts_with("@")) un->sun_path[0] = '\0';
    address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
    return address;
  }
  const std::size_t colon = word.rfind(':');
  if (colon == std::string_view::npos) throw ScriptError("bad address " + std::string(word));
  const std::string_view host = word.substr(0, colon);
  if (host.starts_with("[")) {
    auto* in6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
    in6->sin6_family = AF_INET6;
    in6->sin6_port = parse_port(word.substr(colon + 1));
    if (inet_pton(AF_INET6, std::string(host.substr(1, host.size() - 2)).c_str(),
                  &in6->sin6_addr) != 1) {
      throw ScriptError("bad IPv6 address " + std::string(word));
    }
    address.length = sizeof(sockaddr_in6);
    return address;
  }
  auto* in = reinterpret_cast<sockaddr_in*>(&address.storage);
  in->sin_family = AF_INET;
  in->sin_port = parse_port(word.substr(colon + 1));
  if (inet_pton(AF_INET, std::string(host).c_str(), &in->sin_addr) != 1) {
    throw ScriptError("bad IPv4 address " + std::string(word));
  }
  address.length = sizeof(sockaddr_in);
  return address;
}

std::string describe_address(const void* bytes, socklen_t given, socklen_t capacity) {
  if (given == 0) return "none";
  sockaddr_storage storage{};
  const socklen_t usable = std::min<socklen_t>(given, capacity);
  std::memcpy(&storage, bytes, std::min<std::size_t>(usable, sizeof storage));
  char host[INET6_ADDRSTRLEN] = "";
  if (storage.ss_family == AF_INET && usable >= sizeof(sockaddr_in)) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(storage);
    inet_ntop(AF_INET, &in.sin_addr, host, sizeof host);
    return std::string(host) + ":" + std::to_string(ntohs(in.sin_port));
  }
  if (storage.ss_family == AF_INET6 && usable >= sizeof(sockaddr_in6)) {
    const auto& in6 = reinterpret_cast<const sockaddr_in6&>(storage);
    inet_ntop(AF_INET6, &in6.sin6_addr, host, sizeof host);
    return "[" + std::string(host) + "]:" + std::to_string(ntohs(in6.sin6_port));
  }
  if (storage.ss_family == AF_UNIX) return "unix/" + std::to_string(given);
  return "family" + std::to_string(storage.ss_family) + "/" + std::to_string(given);
}

void* bad_pointer() {
  static void* const page = mmap(nullptr, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return page;
}

namespace {

char* map_pages(int protection) {
  return static_cast<char*>(
      mmap(nullptr, 4 * 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

}  // namespace

void* page_pointer() {
  static char* const pages = map_pages(PROT_READ | PROT_WRITE);
  return pages;
}

bool odd_pointer(std::string_view word, void** out) {
  static char* const hole = [] {
    char* const pages = map_pages(PROT_READ | PROT_WRITE);
    mprotect(pages + 4096, 4096, PROT_NONE);
    return pages + 4096 - kHoleStart;
  }();
  static char* const read_only = map_pages(PROT_READ);
  if (word == "NULL") {
    *out = nullptr;
  } else if (word == "BAD") {
    *out = bad_pointer();
  } else if (word == "HOLE") {
    *out = hole;
  } else if (word == "READONLY") {
    *out = read_only;
  } else if (word == "PAGE") {
    *out = page_pointer();
  } else {
    return false;
  }
  return true;
}

}  // namespace sockagent
