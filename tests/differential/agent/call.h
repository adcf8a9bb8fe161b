// call.h - one call of a script: its parsed arguments, and the text of its result.
//
// purpose     Shared vocabulary of the interpreter's call tables.
// INVARIANTS  A Reply holds one line. Every system call goes through Reply::call(), which prints
//             the return value and the errno name, and notes an errno changed by a success.
// THREADS     A Call and its Reply belong to the worker thread that executes them.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace sockagent {

using Clock = std::chrono::steady_clock;
// How long a call waits for what ought to come at once: a bound for the broken case, far above what
// a starved machine needs.
constexpr auto kPatience = std::chrono::seconds(30);
constexpr int kPatienceMilliseconds = 30'000;

// A malformed script; the text becomes the reply, so that the author sees it.
struct ScriptError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// `name` positional... key=value...
struct Call {
  std::string name;
  std::vector<std::string> args;
  std::map<std::string, std::string, std::less<>> options;

  std::size_t size() const { return args.size(); }
  const std::string& text(std::size_t i) const;     // Errors: ScriptError if absent.
  long number(std::size_t i) const;                 // number, or NAMES joined by '|'
  long number(std::size_t i, long fallback) const;  // the same, or `fallback` if absent
  long option(std::string_view key, long fallback) const;
  bool has(std::string_view key) const { return options.find(key) != options.end(); }
};

class Reply {
 public:
  template <class F>
  long call(F function) {
    errno = kSentinel;
    const long result = static_cast<long>(function());
    const int error = errno;
    add(result, error);
    errno = error;
    return result;
  }
  // For values that no call returned.
  void print(std::string_view words);
  // ` key=text`
  void field(std::string_view key, std::string_view value);
  void field(std::string_view key, long value) { field(key, std::to_string(value)); }
  const std::string& text() const { return text_; }

 private:
  static constexpr int kSentinel = 7777;
  void add(long result, int error);
  std::string text_;
};

using Handler = void (*)(const Call&, Reply&);
using Table = std::map<std::string, Handler, std::less<>>;

void add_control_calls(Table& table);   // socket, bind, listen, options, names, fcntl, dup ...
void add_datagram_calls(Table& table);  // many at once, of ports and datagrams
void add_data_calls(Table& table);      // send, recv and their families, sendfile, stdio ...
void add_event_calls(Table& table);     // poll, select, epoll
void add_process_calls(Table& table);   // fork, exec, signals, limits

// For `timed=MILLISECONDS`: whether a call that had to end after that time ended before it, about
// then, or long after. How long after depends on the machine's load.
void note_time(const Call& call, Reply& reply, Clock::time_point start);

Call parse_call(std::string_view line);     // Errors: ScriptError.
long parse_number(std::string_view words);  // Errors: ScriptError on an unknown name.
const char* constant_name_of_errno(int error);

// Bytes of a script: x:HEX, pat:SEED:LENGTH (a pseudo-random run), rep:CHAR:LENGTH.
std::string parse_bytes(std::string_view word);
// Short bytes are printed escaped, long ones as length and hash.
std::string describe_bytes(std::string_view bytes);

struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};
// 127.0.0.1:80, [::1]:80, unix:PATH, unspec. Errors: ScriptError.
Address parse_address(std::string_view word);
std::string describe_address(const void* bytes, socklen_t given, socklen_t capacity);
std::string describe_poll_bits(unsigned bits);

// Never mapped readable: what a wild pointer of a script points to.
void* bad_pointer();
// Where a word of a script points: NULL, BAD, HOLE (kHoleStart good bytes, a page that is not, good
// ones again), READONLY, PAGE (two pages whose protection `protect` sets). False: it is another
// word.
bool odd_pointer(std::string_view word, void** out);
void* page_pointer();
constexpr std::size_t kHoleStart = 100;
constexpr std::size_t kPageLength = 8192;

}  // namespace sockagent
