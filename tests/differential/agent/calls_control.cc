// calls_control.cc - calls that make, name, configure and close descriptors.
#include <fcntl.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstring>

#include "call.h"

namespace sockagent {
namespace {

int fd_of(const Call& call) {
  return static_cast<int>(call.number(0));
}

void do_socket(const Call& call, Reply& reply) {
  reply.call([&] {
    return ::socket(static_cast<int>(call.number(0)), static_cast<int>(call.number(1)),
                    static_cast<int>(call.number(2, 0)));
  });
}

void do_socketpair(const Call& call, Reply& reply) {
  int fds[2] = {-1, -1};
  const long result = reply.call([&] {
    return ::socketpair(static_cast<int>(call.number(0)), static_cast<int>(call.number(1)),
                        static_cast<int>(call.number(2, 0)), fds);
  });
  if (result == 0) {
    reply.field("fd1", fds[0]);
    reply.field("fd2", fds[1]);
  }
}

void do_pipe(const Call& call, Reply& reply) {
  int fds[2] = {-1, -1};
  if (reply.call([&] { return ::pipe2(fds, static_cast<int>(call.number(0, 0))); }) == 0) {
    reply.field("fd1", fds[0]);
    reply.field("fd2", fds[1]);
  }
}

// bind and connect: FD ADDRESS [len=N]; the address may be NULL or BAD.
void with_address(const Call& call, Reply& reply,
                  int (*function)(int, const sockaddr*, socklen_t)) {
  const std::string& word = call.text(1);
  Address address;
  sockaddr* pointer = address.get();
  if (word == "NULL") {
    pointer = nullptr;
    address.length = sizeof(sockaddr_in);
  } else if (word == "BAD") {
    pointer = static_cast<sockaddr*>(bad_pointer());
    address.length = sizeof(sockaddr_in);
  } else {
    address = parse_address(word);
  }
  const auto length = static_cast<socklen_t>(call.option("len", address.length));
  reply.call([&] { return function(fd_of(call), pointer, length); });
}

void do_bind(const Call& call, Reply& reply) {
  with_address(call, reply, ::bind);
}
void do_connect(const Call& call, Reply& reply) {
  with_address(call, reply, ::connect);
}

void do_listen(const Call& call, Reply& reply) {
  reply.call([&] { return ::listen(fd_of(call), static_cast<int>(call.number(1, 128))); });
}

// getsockname, getpeername, accept, accept4: FD [FLAGS] [len=N] [addr=NULL|BAD].
template <class F>
void returning_address(const Call& call, Reply& reply, F function) {
  sockaddr_storage storage{};
  auto length = static_cast<socklen_t>(call.option("len", sizeof storage));
  const socklen_t capacity = length;
  const auto given = call.options.find("addr");
  auto* pointer = reinterpret_cast<sockaddr*>(&storage);
  socklen_t* length_pointer = &length;
  if (given != call.options.end()) {
    pointer = given->second == "NULL" ? nullptr : static_cast<sockaddr*>(bad_pointer());
    if (given->second == "NULL") length_pointer = nullptr;
  }
  const long result = reply.call([&] { return function(pointer, length_pointer); });
  if (result < 0 || given != call.options.end()) return;
  reply.field("addr", describe_address(&storage, length, capacity));
  reply.field("addrlen", static_cast<long>(length));
}

void do_accept(const Call& call, Reply& reply) {
  returning_address(call, reply, [&](sockaddr* address, socklen_t* length) {
    return ::accept(fd_of(call), address, length);
  });
}

void do_accept4(const Call& call, Reply& reply) {
  returning_address(call, reply, [&](sockaddr* address, socklen_t* length) {
    return ::accept4(fd_of(call), address, length, static_cast<int>(call.number(1, 0)));
  });
}

void do_getsockname(const Call& call, Reply& reply) {
  returning_address(call, reply, [&](sockaddr* address, socklen_t* length) {
    return ::getsockname(fd_of(call), address, length);
  });
}

void do_getpeername(const Call& call, Reply& reply) {
  returning_address(call, reply, [&](sockaddr* address, socklen_t* length) {
    return ::getpeername(fd_of(call), address, length);
  });
}

void do_shutdown(const Call& call, Reply& reply) {
  reply.call([&] { return ::shutdown(fd_of(call), static_cast<int>(call.number(1))); });
}

// close FD [timed=MILLISECONDS]
void do_close(const Call& call, Reply& reply) {
  const auto start = Clock::now();
  reply.call([&] { return ::close(fd_of(call)); });
  note_time(call, reply, start);
}

// Value of setsockopt: NUMBER, linger:ON:SECONDS, time:MILLISECONDS, timeval:SECONDS:MICROSECONDS,
// x:HEX, or an odd pointer, at=N bytes behind its beginning.
void do_setsockopt(const Call& call, Reply& reply) {
  const std::string& word = call.text(3);
  std::string value;
  const void* pointer = nullptr;
  if (word.starts_with("linger:")) {
    const std::size_t colon = word.rfind(':');
    const linger option{static_cast<int>(parse_number(word.substr(7, colon - 7))),
                        static_cast<int>(parse_number(word.substr(colon + 1)))};
    value.assign(reinterpret_cast<const char*>(&option), sizeof option);
  } else if (word.starts_with("time:")) {
    const long milliseconds = parse_number(word.substr(5));
    const timeval option{milliseconds / 1000, milliseconds % 1000 * 1000};
    value.assign(reinterpret_cast<const char*>(&option), sizeof option);
  } else if (word.starts_with("timeval:")) {
    const std::size_t colon = word.rfind(':');
    const timeval option{parse_number(word.substr(8, colon - 8)),
                         parse_number(word.substr(colon + 1))};
    value.assign(reinterpret_cast<const char*>(&option), sizeof option);
  } else if (word.starts_with("x:")) {
    value = parse_bytes(word);
  } else if (void* odd = nullptr; odd_pointer(word, &odd)) {
    pointer = static_cast<char*>(odd) + call.option("at", 0);
  } else {
    const int option = static_cast<int>(call.number(3));
    value.assign(reinterpret_cast<const char*>(&option), sizeof option);
  }
  if (!value.empty()) pointer = value.data();
  const auto length = static_cast<socklen_t>(
      call.option("len", value.empty() ? 4 : static_cast<long>(value.size())));
  reply.call([&] {
    return ::setsockopt(fd_of(call), static_cast<int>(call.number(1)),
                        static_cast<int>(call.number(2)), pointer, length);
  });
}

// getsockopt FD LEVEL NAME [len=N] [show=no] [in=x:HEX] [value=NULL|BAD|HOLE...] [at=N]
// [lenptr=READONLY...]. Says so if anything behind the answer has changed.
void do_getsockopt(const Call& call, Reply& reply) {
  constexpr char kUntouched = 0x55;
  std::string value(4096, kUntouched);
  if (call.has("in")) {
    const std::string given = parse_bytes(call.options.find("in")->second);
    value.replace(0, given.size(), given);
  }
  auto length = static_cast<socklen_t>(call.option("len", 4));
  void* pointer = value.data();
  if (call.has("value") && odd_pointer(call.options.find("value")->second, &pointer) &&
      pointer != nullptr)
    pointer = static_cast<char*>(pointer) + call.option("at", 0);
  socklen_t* length_pointer = &length;
  if (void* odd = nullptr;
      call.has("lenptr") && odd_pointer(call.options.find("lenptr")->second, &odd))
    length_pointer = static_cast<socklen_t*>(odd);
  const long result = reply.call([&] {
    return ::getsockopt(fd_of(call), static_cast<int>(call.number(1)),
                        static_cast<int>(call.number(2)), pointer, length_pointer);
  });
  if (result < 0) return;
  reply.field("len", static_cast<long>(length));
  const std::string_view shown = pointer == value.data()
                                     ? std::string_view(value)
                                     : std::string_view(static_cast<char*>(pointer), length);
  if (shown.find_first_not_of(kUntouched, length) != std::string_view::npos && !call.has("in"))
    reply.field("behind", "changed");
  if (call.has("show") || pointer == nullptr) return;
  if (length == 4) {
    int number = 0;
    std::memcpy(&number, shown.data(), sizeof number);
    reply.field("value", number);
  } else {
    reply.field("value", describe_bytes(shown.substr(0, length)));
  }
}

void do_fcntl(const Call& call, Reply& reply) {
  const long result = reply.call(
      [&] { return ::fcntl(fd_of(call), static_cast<int>(call.number(1)), call.number(2, 0)); });
  if (call.number(1) == F_GETFL && result >= 0) {
    std::string names = result & O_NONBLOCK ? "nonblock" : "block";
    if (result & O_ASYNC) names += "|async";
    reply.field("is", names);
  }
}

// ioctl FD REQUEST [VALUE]: the argument is an int in and out. Or WORD: an odd pointer, value:N (the
// number itself), bytes:LENGTH:x:HEX (so long an argument, which begins so; it is shown afterwards).
void do_ioctl(const Call& call, Reply& reply) {
  const auto request = static_cast<unsigned long>(call.number(1));
  const std::string word = call.size() > 2 ? call.text(2) : "";
  void* odd = nullptr;
  if (odd_pointer(word, &odd) || word.starts_with("value:")) {
    if (word.starts_with("value:"))
      odd = reinterpret_cast<void*>(parse_number(word.substr(6)));
    else if (odd != nullptr)
      odd = static_cast<char*>(odd) + call.option("at", 0);
    reply.call([&] { return ::ioctl(fd_of(call), request, odd); });
    return;
  }
  if (word.starts_with("bytes:")) {
    const std::size_t colon = word.find(':', 6);
    std::string argument = parse_bytes(word.substr(colon + 1));
    argument.resize(static_cast<std::size_t>(parse_number(word.substr(6, colon - 6))));
    if (reply.call([&] { return ::ioctl(fd_of(call), request, argument.data()); }) >= 0)
      reply.field("argument", describe_bytes(argument));
    return;
  }
  int value = static_cast<int>(call.number(2, 0));
  const long result = reply.call(
      [&] { return ::ioctl(fd_of(call), static_cast<unsigned long>(call.number(1)), &value); });
  if (result >= 0) reply.field("value", value);
}

// ifconf FD LENGTH [buf=NULL|BAD...]: SIOCGIFCONF; prints the length and what stands there.
void do_ifconf(const Call& call, Reply& reply) {
  std::string room(4096, '\0');
  ifconf list{};
  list.ifc_len = static_cast<int>(call.number(1));
  list.ifc_buf = room.data();
  if (void* odd = nullptr; call.has("buf") && odd_pointer(call.options.find("buf")->second, &odd))
    list.ifc_buf = static_cast<char*>(odd);
  if (reply.call([&] { return ::ioctl(fd_of(call), SIOCGIFCONF, &list); }) < 0) return;
  reply.field("len", list.ifc_len);
  reply.field("list", describe_bytes(std::string_view(room).substr(0, 80)));
}

// ethtool FD NAME COMMAND LENGTH: SIOCETHTOOL; prints what stands there.
void do_ethtool(const Call& call, Reply& reply) {
  std::string answer(512, '\x55');
  const auto command = static_cast<unsigned>(call.number(2));
  std::memcpy(answer.data(), &command, sizeof command);
  ifreq device{};
  call.text(1).copy(device.ifr_name, IFNAMSIZ - 1);
  device.ifr_data = answer.data();
  if (reply.call([&] { return ::ioctl(fd_of(call), SIOCETHTOOL, &device); }) < 0) return;
  const auto length = static_cast<std::size_t>(call.number(3));
  reply.field("answer", describe_bytes(std::string_view(answer).substr(0, length)));
  if (answer.find_first_not_of('\x55', length) != std::string::npos)
    reply.field("behind", "changed");
}

void do_dup(const Call& call, Reply& reply) {
  reply.call([&] { return ::dup(fd_of(call)); });
}

void do_dup2(const Call& call, Reply& reply) {
  reply.call([&] { return ::dup2(fd_of(call), static_cast<int>(call.number(1))); });
}

void do_dup3(const Call& call, Reply& reply) {
  reply.call([&] {
    return ::dup3(fd_of(call), static_cast<int>(call.number(1)),
                  static_cast<int>(call.number(2, 0)));
  });
}

void do_close_range(const Call& call, Reply& reply) {
  reply.call([&] {
    return ::close_range(static_cast<unsigned>(call.number(0)),
                         static_cast<unsigned>(call.number(1)),
                         static_cast<int>(call.number(2, 0)));
  });
}

void do_fstat(const Call& call, Reply& reply) {
  struct stat info {};
  if (reply.call([&] { return ::fstat(fd_of(call), &info); }) < 0) return;
  const char* kind = S_ISSOCK(info.st_mode)   ? "socket"
                     : S_ISFIFO(info.st_mode) ? "pipe"
                     : S_ISREG(info.st_mode)  ? "file"
                                              : "other";
  reply.field("kind", kind);
}

void do_lseek(const Call& call, Reply& reply) {
  reply.call(
      [&] { return ::lseek(fd_of(call), call.number(1), static_cast<int>(call.number(2))); });
}

void do_open(const Call& call, Reply& reply) {
  reply.call([&] { return ::open(call.text(0).c_str(), static_cast<int>(call.number(1)), 0600); });
}

void do_sockatmark(const Call& call, Reply& reply) {
  reply.call([&] { return ::sockatmark(fd_of(call)); });
}

// getaddrinfo HOST SERVICE: prints the sorted-by-libc list of numeric results.
void do_getaddrinfo(const Call& call, Reply& reply) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = static_cast<int>(call.option("flags", 0));
  addrinfo* list = nullptr;
  const int result = ::getaddrinfo(call.text(0).c_str(), call.text(1).c_str(), &hints, &list);
  reply.print("= " + std::to_string(result));
  for (const addrinfo* one = list; result == 0 && one != nullptr; one = one->ai_next) {
    reply.field("addr", describe_address(one->ai_addr, one->ai_addrlen, one->ai_addrlen));
  }
  if (result == 0) ::freeaddrinfo(list);
}

}  // namespace

void add_control_calls(Table& table) {
  table.insert({{"socket", do_socket},
                {"socketpair", do_socketpair},
                {"pipe", do_pipe},
                {"bind", do_bind},
                {"connect", do_connect},
                {"listen", do_listen},
                {"accept", do_accept},
                {"accept4", do_accept4},
                {"getsockname", do_getsockname},
                {"getpeername", do_getpeername},
                {"shutdown", do_shutdown},
                {"close", do_close},
                {"setsockopt", do_setsockopt},
                {"getsockopt", do_getsockopt},
                {"fcntl", do_fcntl},
                {"ioctl", do_ioctl},
                {"ifconf", do_ifconf},
                {"ethtool", do_ethtool},
                {"dup", do_dup},
                {"dup2", do_dup2},
                {"dup3", do_dup3},
                {"close_range", do_close_range},
                {"fstat", do_fstat},
                {"lseek", do_lseek},
                {"open", do_open},
                {"sockatmark", do_sockatmark},
                {"getaddrinfo", do_getaddrinfo}});
}

}  // namespace sockagent
