// calls_data.cc - calls that move bytes, and a few that move many of them and print a summary.
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "call.h"

extern "C" {
// What a program built with _FORTIFY_SOURCE calls.
ssize_t __recv_chk(int, void*, size_t, size_t, int);
ssize_t __read_chk(int, void*, size_t, size_t);
ssize_t __recvfrom_chk(int, void*, size_t, size_t, int, sockaddr*, socklen_t*);
int __poll_chk(pollfd*, nfds_t, int, size_t);
}

namespace sockagent {
namespace {

int fd_of(const Call& call) {
  return static_cast<int>(call.number(0));
}

// The bytes of a sending call: a literal, or an odd pointer (with len=N).
struct Outgoing {
  std::string bytes;
  void* pointer = nullptr;
  std::size_t length = 0;

  Outgoing(const Call& call, std::size_t i) {
    const std::string& word = call.text(i);
    if (!odd_pointer(word, &pointer)) {
      bytes = parse_bytes(word);
      pointer = bytes.data();
    }
    length = static_cast<std::size_t>(call.option("len", static_cast<long>(bytes.size())));
  }
};

void do_send(const Call& call, Reply& reply) {
  const Outgoing out(call, 1);
  const auto start = Clock::now();
  reply.call([&] {
    return ::send(fd_of(call), out.pointer, out.length, static_cast<int>(call.number(2, 0)));
  });
  note_time(call, reply, start);
}

void do_write(const Call& call, Reply& reply) {
  const Outgoing out(call, 1);
  reply.call([&] { return ::write(fd_of(call), out.pointer, out.length); });
}

void do_sys_write(const Call& call, Reply& reply) {
  const Outgoing out(call, 1);
  reply.call([&] { return ::syscall(SYS_write, fd_of(call), out.pointer, out.length); });
}

// sendto FD BYTES ADDRESS [FLAGS] [alen=N]
void do_sendto(const Call& call, Reply& reply) {
  const Outgoing out(call, 1);
  Address address;
  const bool none = call.text(2) == "NULL";
  if (!none) address = parse_address(call.text(2));
  const auto length = static_cast<socklen_t>(call.option("alen", address.length));
  reply.call([&] {
    return ::sendto(fd_of(call), out.pointer, out.length, static_cast<int>(call.number(3, 0)),
                    none ? nullptr : address.get(), length);
  });
}

// The length of an odd pointer in a vector: HOLE reaches into its hole.
constexpr std::size_t kOddLength = 200;

// What the vector of a call is at: vector=BAD.
iovec* vector_of(const Call& call, std::vector<iovec>& list) {
  return call.has("vector") ? static_cast<iovec*>(bad_pointer()) : list.data();
}

// writev FD BYTES...; the word `empty` is an iovec of length 0 and NULL base.
struct OutgoingVector {
  std::vector<std::string> pieces;
  std::vector<iovec> list;

  OutgoingVector(const Call& call, std::size_t first) {
    for (std::size_t i = first; i < call.size(); ++i) {
      void* odd = nullptr;
      const bool plain = call.text(i) != "empty" && !odd_pointer(call.text(i), &odd);
      pieces.push_back(plain ? parse_bytes(call.text(i)) : std::string());
    }
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      void* odd = nullptr;
      if (odd_pointer(call.text(first + i), &odd)) {
        list.push_back({odd, kOddLength});
      } else {
        list.push_back({pieces[i].empty() ? nullptr : pieces[i].data(), pieces[i].size()});
      }
    }
  }
};

void do_writev(const Call& call, Reply& reply) {
  OutgoingVector out(call, 1);
  const int count = static_cast<int>(call.option("count", static_cast<long>(out.list.size())));
  reply.call([&] { return ::writev(fd_of(call), vector_of(call, out.list), count); });
}

// sendmsg FD BYTES... [addr=A] [flags=F] [pass=FD] [pktinfo=IPV4]
void do_sendmsg(const Call& call, Reply& reply) {
  OutgoingVector out(call, 1);
  msghdr message{};
  message.msg_iov = vector_of(call, out.list);
  message.msg_iovlen = out.list.size();
  Address address;
  if (call.has("addr")) {
    address = parse_address(call.options.find("addr")->second);
    message.msg_name = address.get();
    message.msg_namelen = address.length;
  }
  alignas(cmsghdr) char control[128] = {};
  if (call.has("pass")) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int));
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    const int fd = static_cast<int>(call.option("pass", -1));
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  } else if (call.has("pktinfo")) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(in_pktinfo));
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = IPPROTO_IP;
    header->cmsg_type = IP_PKTINFO;
    header->cmsg_len = CMSG_LEN(sizeof(in_pktinfo));
    const Address source = parse_address(call.options.find("pktinfo")->second + ":0");
    in_pktinfo info{};
    info.ipi_spec_dst = reinterpret_cast<const sockaddr_in&>(source.storage).sin_addr;
    std::memcpy(CMSG_DATA(header), &info, sizeof info);
  }
  reply.call(
      [&] { return ::sendmsg(fd_of(call), &message, static_cast<int>(call.option("flags", 0))); });
}

// sendmmsg FD BYTES... [addr=A] [flags=F]: one message for each piece.
void do_sendmmsg(const Call& call, Reply& reply) {
  OutgoingVector out(call, 1);
  Address address;
  if (call.has("addr")) address = parse_address(call.options.find("addr")->second);
  std::vector<mmsghdr> messages(out.list.size());
  for (std::size_t i = 0; i < messages.size(); ++i) {
    messages[i].msg_hdr.msg_iov = &out.list[i];
    messages[i].msg_hdr.msg_iovlen = 1;
    messages[i].msg_hdr.msg_name = address.length != 0 ? address.get() : nullptr;
    messages[i].msg_hdr.msg_namelen = address.length;
  }
  const long result = reply.call([&] {
    return ::sendmmsg(fd_of(call), messages.data(), static_cast<unsigned>(messages.size()),
                      static_cast<int>(call.option("flags", 0)));
  });
  for (long i = 0; i < result; ++i) {
    reply.field("sent", static_cast<long>(messages[static_cast<std::size_t>(i)].msg_len));
  }
}

void print_received(Reply& reply, const std::string& buffer, long result) {
  if (result < 0) return;
  const std::size_t shown = std::min(buffer.size(), static_cast<std::size_t>(result));
  reply.print(describe_bytes(std::string_view(buffer).substr(0, shown)));
}

void* target(const Call& call, std::string& buffer) {
  const auto found = call.options.find("buf");
  if (found == call.options.end()) return buffer.data();
  void* pointer = nullptr;
  if (!odd_pointer(found->second, &pointer)) throw ScriptError("no such pointer");
  return pointer;
}

// A kind of receiving call with FD LENGTH; the result's bytes are printed.
template <class F>
void receive(const Call& call, Reply& reply, F function) {
  std::string buffer(static_cast<std::size_t>(call.number(1)), '\0');
  void* const pointer = target(call, buffer);
  const auto start = Clock::now();
  const long result = reply.call([&] { return function(pointer, buffer.size()); });
  note_time(call, reply, start);
  print_received(reply, buffer, result);
}

void do_recv(const Call& call, Reply& reply) {
  receive(call, reply, [&](void* buffer, std::size_t length) {
    return ::recv(fd_of(call), buffer, length, static_cast<int>(call.number(2, 0)));
  });
}

void do_read(const Call& call, Reply& reply) {
  receive(call, reply,
          [&](void* buffer, std::size_t length) { return ::read(fd_of(call), buffer, length); });
}

void do_pread(const Call& call, Reply& reply) {
  receive(call, reply, [&](void* buffer, std::size_t length) {
    return ::pread(fd_of(call), buffer, length, 0);
  });
}

void do_sys_read(const Call& call, Reply& reply) {
  receive(call, reply, [&](void* buffer, std::size_t length) {
    return ::syscall(SYS_read, fd_of(call), buffer, length);
  });
}

void do_recv_chk(const Call& call, Reply& reply) {
  receive(call, reply, [&](void* buffer, std::size_t length) {
    return ::__recv_chk(fd_of(call), buffer, length, length, static_cast<int>(call.number(2, 0)));
  });
}

void do_read_chk(const Call& call, Reply& reply) {
  receive(call, reply, [&](void* buffer, std::size_t length) {
    return ::__read_chk(fd_of(call), buffer, length, length);
  });
}

void do_recvfrom_chk(const Call& call, Reply& reply) {
  receive(call, reply, [&](void* buffer, std::size_t length) {
    return ::__recvfrom_chk(fd_of(call), buffer, length, length,
                            static_cast<int>(call.number(2, 0)), nullptr, nullptr);
  });
}

void do_poll_chk(const Call& call, Reply& reply) {
  pollfd one{fd_of(call), static_cast<short>(call.number(1)), 0};
  reply.call([&] { return ::__poll_chk(&one, 1, static_cast<int>(call.number(2)), sizeof one); });
  reply.field("bits", describe_poll_bits(static_cast<unsigned short>(one.revents)));
}

// recvfrom FD LENGTH [FLAGS] [alen=N]
void do_recvfrom(const Call& call, Reply& reply) {
  std::string buffer(static_cast<std::size_t>(call.number(1)), '\0');
  sockaddr_storage from{};
  auto length = static_cast<socklen_t>(call.option("alen", sizeof from));
  const socklen_t capacity = length;
  const long result = reply.call([&] {
    return ::recvfrom(fd_of(call), target(call, buffer), buffer.size(),
                      static_cast<int>(call.number(2, 0)), reinterpret_cast<sockaddr*>(&from),
                      &length);
  });
  print_received(reply, buffer, result);
  if (result >= 0) {
    reply.field("addr", describe_address(&from, length, capacity));
    reply.field("addrlen", static_cast<long>(length));
  }
}

struct IncomingVector {
  std::vector<std::string> pieces;
  std::vector<iovec> list;

  IncomingVector(const Call& call, std::size_t first) {
    for (std::size_t i = first; i < call.size(); ++i) {
      void* odd = nullptr;
      const bool plain = !odd_pointer(call.text(i), &odd);
      pieces.emplace_back(plain ? static_cast<std::size_t>(call.number(i)) : 0, '\0');
    }
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      void* odd = nullptr;
      if (odd_pointer(call.text(first + i), &odd)) {
        list.push_back({odd, kOddLength});
      } else {
        list.push_back({pieces[i].data(), pieces[i].size()});
      }
    }
  }
  std::string joined() const {
    std::string all;
    for (const std::string& piece : pieces) all += piece;
    return all;
  }
};

// readv FD LENGTH... [count=N]
void do_readv(const Call& call, Reply& reply) {
  IncomingVector in(call, 1);
  const int count = static_cast<int>(call.option("count", static_cast<long>(in.list.size())));
  const long result =
      reply.call([&] { return ::readv(fd_of(call), vector_of(call, in.list), count); });
  print_received(reply, in.joined(), result);
}

void print_control(msghdr& message, Reply& reply) {
  for (cmsghdr* one = CMSG_FIRSTHDR(&message); one != nullptr; one = CMSG_NXTHDR(&message, one)) {
    if (one->cmsg_level == SOL_SOCKET && one->cmsg_type == SCM_RIGHTS) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(one), sizeof fd);
      reply.field("fd", fd);
    } else if (one->cmsg_level == IPPROTO_IP && one->cmsg_type == IP_PKTINFO) {
      in_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(one), sizeof info);
      sockaddr_in in{};
      in.sin_family = AF_INET;
      in.sin_addr = info.ipi_addr;
      reply.field("pktinfo", describe_address(&in, sizeof in, sizeof in));
    } else if (one->cmsg_level == IPPROTO_TCP && one->cmsg_len == CMSG_LEN(sizeof(int))) {
      int value = 0;
      std::memcpy(&value, CMSG_DATA(one), sizeof value);
      reply.field("inq", value);
    } else {
      reply.field("cmsg", std::to_string(one->cmsg_level) + "/" + std::to_string(one->cmsg_type) +
                              "/" + std::to_string(one->cmsg_len));
    }
  }
}

// recvmsg FD LENGTH... [flags=F] [control=N] [alen=N]
void do_recvmsg(const Call& call, Reply& reply) {
  IncomingVector in(call, 1);
  msghdr message{};
  message.msg_iov = vector_of(call, in.list);
  message.msg_iovlen = in.list.size();
  sockaddr_storage from{};
  const auto capacity = static_cast<socklen_t>(call.option("alen", sizeof from));
  message.msg_name = capacity == 0 ? nullptr : &from;
  message.msg_namelen = capacity;
  alignas(cmsghdr) char control[256] = {};
  message.msg_controllen = static_cast<std::size_t>(call.option("control", 0));
  message.msg_control = message.msg_controllen == 0 ? nullptr : control;
  const long result = reply.call(
      [&] { return ::recvmsg(fd_of(call), &message, static_cast<int>(call.option("flags", 0))); });
  if (result < 0) return;
  print_received(reply, in.joined(), result);
  reply.field("flags", message.msg_flags);
  reply.field("addr", describe_address(&from, message.msg_namelen, capacity));
  print_control(message, reply);
}

// recvmmsg FD COUNT LENGTH [flags=F] [time=MS]
void do_recvmmsg(const Call& call, Reply& reply) {
  const auto count = static_cast<std::size_t>(call.number(1));
  std::vector<std::string> buffers(count,
                                   std::string(static_cast<std::size_t>(call.number(2)), '\0'));
  std::vector<iovec> vectors(count);
  std::vector<mmsghdr> messages(count);
  std::vector<sockaddr_storage> names(count);
  for (std::size_t i = 0; i < count; ++i) {
    vectors[i] = {buffers[i].data(), buffers[i].size()};
    messages[i].msg_hdr.msg_iov = &vectors[i];
    messages[i].msg_hdr.msg_iovlen = 1;
    messages[i].msg_hdr.msg_name = &names[i];
    messages[i].msg_hdr.msg_namelen = sizeof names[i];
  }
  const long milliseconds = call.option("time", 0);
  timespec limit{milliseconds / 1000, milliseconds % 1000 * 1000000};
  const long result = reply.call([&] {
    return ::recvmmsg(fd_of(call), messages.data(), static_cast<unsigned>(count),
                      static_cast<int>(call.option("flags", 0)),
                      call.has("time") ? &limit : nullptr);
  });
  for (std::size_t i = 0; result > 0 && i < static_cast<std::size_t>(result); ++i) {
    print_received(reply, buffers[i], messages[i].msg_len);
    reply.field("flags", messages[i].msg_hdr.msg_flags);
    reply.field("addr",
                describe_address(&names[i], messages[i].msg_hdr.msg_namelen, sizeof names[i]));
  }
}

// Sizes of 1 byte to 64 KiB from a fixed sequence, so that both runs cut alike.
class ChunkSizes {
 public:
  explicit ChunkSizes(long seed) : state_(static_cast<std::uint64_t>(seed) * 2654435761U + 1) {}
  std::size_t next() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    const auto shift = static_cast<unsigned>(state_ >> 60);
    return (state_ >> 33) % (std::size_t{1} << (shift + 1)) + 1;
  }

 private:
  std::uint64_t state_;
};

// sendall FD BYTES [chunks=SEED] [flags=F]: as an application's loop does it.
void do_sendall(const Call& call, Reply& reply) {
  const std::string bytes = parse_bytes(call.text(1));
  ChunkSizes sizes(call.option("chunks", 0));
  std::size_t done = 0;
  while (done < bytes.size()) {
    const std::size_t left = bytes.size() - done;
    const std::size_t piece = call.has("chunks") ? std::min(left, sizes.next()) : left;
    const ssize_t n =
        ::send(fd_of(call), bytes.data() + done, piece, static_cast<int>(call.option("flags", 0)));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      pollfd one{fd_of(call), POLLOUT, 0};
      ::poll(&one, 1, kPatienceMilliseconds);
      continue;
    }
    if (n < 0) {
      reply.field("error", constant_name_of_errno(errno));
      return;  // how far it got depends on buffer sizes
    }
    done += static_cast<std::size_t>(n);
  }
  reply.field("sent", static_cast<long>(done));
}

// recvall FD COUNT [chunks=SEED]: reads until COUNT bytes or the end, and prints hash and end.
void do_recvall(const Call& call, Reply& reply) {
  const auto wanted = static_cast<std::size_t>(call.number(1));
  ChunkSizes sizes(call.option("chunks", 0));
  std::string bytes;
  std::string chunk;
  while (bytes.size() < wanted) {
    chunk.resize(std::min(wanted - bytes.size(), call.has("chunks") ? sizes.next() : 65536));
    const ssize_t n = ::recv(fd_of(call), chunk.data(), chunk.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      pollfd one{fd_of(call), POLLIN, 0};
      ::poll(&one, 1, kPatienceMilliseconds);
      continue;
    }
    if (n <= 0) {
      reply.field("end", n == 0 ? "EOF" : constant_name_of_errno(errno));
      break;
    }
    bytes.append(chunk.data(), static_cast<std::size_t>(n));
  }
  reply.print(describe_bytes(bytes));
}

// histogram FD COUNT: reads COUNT bytes or until the end, prints how often each byte came.
void do_histogram(const Call& call, Reply& reply) {
  std::array<long, 256> counts{};
  long left = call.number(1);
  char chunk[16384];
  while (left > 0) {
    const ssize_t n = ::recv(
        fd_of(call), chunk, std::min<std::size_t>(sizeof chunk, static_cast<std::size_t>(left)), 0);
    if (n <= 0) break;
    for (ssize_t i = 0; i < n; ++i) ++counts[static_cast<unsigned char>(chunk[i])];
    left -= n;
  }
  reply.field("left", left);
  for (int i = 0; i < 256; ++i) {
    if (counts[static_cast<std::size_t>(i)] != 0) {
      reply.field(std::string(1, static_cast<char>(i)), counts[static_cast<std::size_t>(i)]);
    }
  }
}

// fill FD: sends until the socket refuses. How much fits depends on buffers, and is returned only
// as `hidden`, for a later `drain` of the peer to check in full. The runner repeats the call, each
// time when nothing moves any more, until it adds nothing.
void do_fill(const Call& call, Reply& reply) {
  const std::string chunk(4096, 'f');
  const auto limit = Clock::now() + kPatience;
  auto idle_since = Clock::now();
  long total = 0;
  // Refused for a while, since the kernel drains the sender's buffer meanwhile.
  while (Clock::now() - idle_since < std::chrono::milliseconds(100) && Clock::now() < limit) {
    const ssize_t n = ::send(fd_of(call), chunk.data(), chunk.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
      total += n;
      idle_since = Clock::now();
    } else if (errno != EAGAIN) {
      reply.field("error", constant_name_of_errno(errno));
      return;
    } else {
      ::usleep(500);
    }
  }
  reply.field("full", Clock::now() < limit);
  reply.field("hidden", total);
}

// drain FD COUNT: reads exactly COUNT bytes of a `fill`.
void do_drain(const Call& call, Reply& reply) {
  long left = call.number(1);
  bool same = true;
  char chunk[65536];
  while (left > 0) {
    pollfd one{fd_of(call), POLLIN, 0};
    if (::poll(&one, 1, kPatienceMilliseconds) <= 0) break;
    const ssize_t n = ::recv(
        fd_of(call), chunk, std::min<std::size_t>(sizeof chunk, static_cast<std::size_t>(left)), 0);
    if (n <= 0) break;
    same = same && std::all_of(chunk, chunk + n, [](char c) { return c == 'f'; });
    left -= n;
  }
  reply.field("all", left == 0);
  reply.field("same", same);
}

// until FD REQUEST VALUE: repeats an int-valued ioctl until it gives VALUE, prints the last.
void do_until(const Call& call, Reply& reply) {
  int value = 0;
  const auto limit = Clock::now() + kPatience;
  while (Clock::now() < limit) {
    if (::ioctl(fd_of(call), static_cast<unsigned long>(call.number(1)), &value) < 0) break;
    if (value == call.number(2)) break;
    ::usleep(500);
  }
  reply.field("value", value);
}

// sendfile OUT IN COUNT [offset=N]; sendfile64 is another function of the C library.
template <ssize_t (*kSend)(int, int, off_t*, std::size_t)>
void do_sendfile(const Call& call, Reply& reply) {
  off_t offset = call.option("offset", 0);
  off_t* const at = call.has("offset_at") ? static_cast<off_t*>(bad_pointer())
                    : call.has("offset")  ? &offset
                                          : nullptr;
  const long result = reply.call([&] {
    return kSend(fd_of(call), static_cast<int>(call.number(1)), at,
                 static_cast<std::size_t>(call.number(2)));
  });
  if (result >= 0 && call.has("offset")) reply.field("offset", offset);
}

// An offset of a call: NAME=NUMBER, NAME=BAD or none.
off64_t* offset_of(const Call& call, std::string_view name, off64_t& room) {
  if (!call.has(name)) return nullptr;
  if (call.options.find(name)->second == "BAD") return static_cast<off64_t*>(bad_pointer());
  room = call.option(name, 0);
  return &room;
}

// splice|tee|copy_range IN OUT COUNT [FLAGS] [in_off=N] [out_off=N]
void do_splice(const Call& call, Reply& reply) {
  off64_t in = 0;
  off64_t out = 0;
  reply.call([&] {
    return ::splice(fd_of(call), offset_of(call, "in_off", in), static_cast<int>(call.number(1)),
                    offset_of(call, "out_off", out), static_cast<std::size_t>(call.number(2)),
                    static_cast<unsigned>(call.number(3, 0)));
  });
}
void do_tee(const Call& call, Reply& reply) {
  reply.call([&] {
    return ::tee(fd_of(call), static_cast<int>(call.number(1)),
                 static_cast<std::size_t>(call.number(2)),
                 static_cast<unsigned>(call.number(3, 0)));
  });
}
void do_copy_range(const Call& call, Reply& reply) {
  off64_t in = 0;
  off64_t out = 0;
  reply.call([&] {
    return ::copy_file_range(fd_of(call), offset_of(call, "in_off", in),
                             static_cast<int>(call.number(1)), offset_of(call, "out_off", out),
                             static_cast<std::size_t>(call.number(2)),
                             static_cast<unsigned>(call.number(3, 0)));
  });
}

// vmsplice FD BYTES [FLAGS]
void do_vmsplice(const Call& call, Reply& reply) {
  const Outgoing out(call, 1);
  const iovec piece{out.pointer, out.length};
  reply.call(
      [&] { return ::vmsplice(fd_of(call), &piece, 1, static_cast<unsigned>(call.number(2, 0))); });
}

// stdio: streams are numbered from 0 in the order of fdopen.
std::mutex g_streams_mutex;
std::vector<std::FILE*> g_streams;

std::FILE* stream(const Call& call) {
  const std::lock_guard lock(g_streams_mutex);
  return g_streams.at(static_cast<std::size_t>(call.number(0)));
}

void do_fdopen(const Call& call, Reply& reply) {
  std::FILE* const file = ::fdopen(fd_of(call), call.text(1).c_str());
  if (file == nullptr) {
    reply.print(std::string("= NULL ") + constant_name_of_errno(errno));
    return;
  }
  const std::lock_guard lock(g_streams_mutex);
  g_streams.push_back(file);
  reply.print("= " + std::to_string(g_streams.size() - 1));
}

void do_fputs(const Call& call, Reply& reply) {
  const std::string bytes = parse_bytes(call.text(1));
  reply.field("items", static_cast<long>(std::fwrite(bytes.data(), 1, bytes.size(), stream(call))));
}

void do_fprintf(const Call& call, Reply& reply) {
  const std::string bytes = parse_bytes(call.text(1));
  reply.field("count", std::fprintf(stream(call), "[%s] %d\n", bytes.c_str(), 42));
}

void do_dprintf(const Call& call, Reply& reply) {
  const std::string bytes = parse_bytes(call.text(1));
  reply.field("count", ::dprintf(fd_of(call), "<%s>", bytes.c_str()));
}

void do_fgets(const Call& call, Reply& reply) {
  char line[1024];
  const char* const result = std::fgets(line, sizeof line, stream(call));
  reply.print(result == nullptr ? "= NULL" : describe_bytes(line));
}

void do_getc(const Call& call, Reply& reply) {
  reply.field("c", std::getc(stream(call)));
}

void do_fflush(const Call& call, Reply& reply) {
  reply.call([&] { return std::fflush(stream(call)); });
}

void do_fclose(const Call& call, Reply& reply) {
  reply.print("= " + std::to_string(std::fclose(stream(call))));
}

}  // namespace

void add_data_calls(Table& table) {
  table.insert({{"send", do_send},
                {"write", do_write},
                {"sys_write", do_sys_write},
                {"sendto", do_sendto},
                {"writev", do_writev},
                {"sendmsg", do_sendmsg},
                {"sendmmsg", do_sendmmsg},
                {"recv", do_recv},
                {"read", do_read},
                {"pread", do_pread},
                {"sys_read", do_sys_read},
                {"recv_chk", do_recv_chk},
                {"read_chk", do_read_chk},
                {"recvfrom_chk", do_recvfrom_chk},
                {"poll_chk", do_poll_chk},
                {"recvfrom", do_recvfrom},
                {"readv", do_readv},
                {"recvmsg", do_recvmsg},
                {"recvmmsg", do_recvmmsg},
                {"sendall", do_sendall},
                {"recvall", do_recvall},
                {"histogram", do_histogram},
                {"fill", do_fill},
                {"drain", do_drain},
                {"until", do_until},
                {"sendfile", do_sendfile<::sendfile>},
                {"sendfile64", do_sendfile<::sendfile64>},
                {"splice", do_splice},
                {"tee", do_tee},
                {"copy_range", do_copy_range},
                {"vmsplice", do_vmsplice},
                {"fdopen", do_fdopen},
                {"fputs", do_fputs},
                {"fprintf", do_fprintf},
                {"dprintf", do_dprintf},
                {"fgets", do_fgets},
                {"getc", do_getc},
                {"fflush", do_fflush},
                {"fclose", do_fclose}});
}

}  // namespace sockagent
