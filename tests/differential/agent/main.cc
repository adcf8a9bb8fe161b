// main.cc - sockagent DIR NAME [ID]: executes socket calls that a coordinator sends it.
//
// purpose     An unmodified ordinary program for the differential tests: the same calls are made
//             natively and under MwComms, and the printed results compared.
// TRUST       The coordinator is the test runner.
// INVARIANTS  The control pipes sit at kRequestFd and kReplyFd, so that descriptors from 3 up are
//             the script's own and follow the lowest-free rule.
// THREADS     The first thread reads requests; each actor thread of the script is one worker
//             thread, made at first use. Signals go to workers only.
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "call.h"
#include "session.h"

namespace sockagent {
namespace {

constexpr int kRequestFd = 500;
constexpr int kReplyFd = 501;

struct Worker {
  std::mutex mutex;
  std::condition_variable wake;
  bool pending = false;
  std::string id;
  std::string line;
  pid_t tid = 0;
};

Identity g_identity;
std::mutex g_workers_mutex;
std::map<std::string, std::unique_ptr<Worker>>* g_workers;
thread_local std::string t_request;

const Table& table() {
  static const Table* const calls = [] {
    auto* all = new Table;
    add_control_calls(*all);
    add_data_calls(*all);
    add_datagram_calls(*all);
    add_event_calls(*all);
    add_process_calls(*all);
    return all;
  }();
  return *calls;
}

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::_Exit(99);
}

void write_line(const std::string& line) {
  // One write: lines of up to PIPE_BUF bytes from several threads stay whole.
  const std::string text = line + "\n";
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(kReplyFd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("reply");
    done += static_cast<std::size_t>(n);
  }
}

std::string execute(const std::string& line) {
  try {
    const Call call = parse_call(line);
    const auto found = table().find(call.name);
    if (found == table().end()) throw ScriptError("unknown call " + call.name);
    Reply reply;
    found->second(call, reply);
    return reply.text();
  } catch (const ScriptError& error) {
    return std::string("SCRIPT-ERROR ") + error.what();
  }
}

void block_signals(int how) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGUSR1, SIGUSR2, SIGALRM, SIGURG, SIGIO, SIGCHLD, SIGTERM}) {
    sigaddset(&set, signal);
  }
  pthread_sigmask(how, &set, nullptr);
}

void work(Worker* self) {
  block_signals(SIG_UNBLOCK);
  {
    const std::lock_guard lock(self->mutex);
    self->tid = static_cast<pid_t>(::syscall(SYS_gettid));
  }
  for (;;) {
    std::unique_lock lock(self->mutex);
    self->wake.wait(lock, [self] { return self->pending; });
    self->pending = false;
    t_request = self->id;
    const std::string line = self->line;
    const pid_t tid = self->tid;
    lock.unlock();
    write_line(t_request + " @ " + std::to_string(::getpid()) + " " + std::to_string(tid));
    write_line(t_request + " " + execute(line));
  }
}

Worker& worker(const std::string& name) {
  const std::lock_guard lock(g_workers_mutex);
  std::unique_ptr<Worker>& slot = (*g_workers)[name];
  if (slot == nullptr) {
    slot = std::make_unique<Worker>();
    std::thread(work, slot.get()).detach();
  }
  return *slot;
}

void dispatch(const std::string& line) {
  // ID THREAD call...
  const std::size_t id_end = line.find(' ');
  const std::size_t name_end = line.find(' ', id_end + 1);
  if (name_end == std::string::npos) fail("bad request");
  Worker& target = worker(line.substr(id_end + 1, name_end - id_end - 1));
  const std::lock_guard lock(target.mutex);
  target.id = line.substr(0, id_end);
  target.line = line.substr(name_end + 1);
  target.pending = true;
  target.wake.notify_one();
}

void place(const std::string& path, int flags, int number) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC);
  if (fd < 0) fail(path.c_str());
  if (::dup3(fd, number, O_CLOEXEC) < 0) fail("dup3");
  if (fd != number) ::close(fd);
}

}  // namespace

const Identity& identity() {
  return g_identity;
}
const std::string& current_request() {
  return t_request;
}

pid_t thread_id(const std::string& name) {
  const std::lock_guard lock(g_workers_mutex);
  const auto found = g_workers->find(name);
  if (found == g_workers->end()) return 0;
  const std::lock_guard worker_lock(found->second->mutex);
  return found->second->tid;
}

void reply_and_exit(const std::string& text, int status) {
  write_line(t_request + " " + text);
  std::_Exit(status);
}

void serve(const std::string& name, const std::string& id) {
  // After fork the parent's table of workers and its locks are dead: start with new ones.
  new (&g_workers_mutex) std::mutex;
  g_workers = new std::map<std::string, std::unique_ptr<Worker>>;
  place(g_identity.directory + "/" + name + ".req", O_RDONLY, kRequestFd);
  place(g_identity.directory + "/" + name + ".rep", O_WRONLY, kReplyFd);
  block_signals(SIG_BLOCK);
  write_line(id + " = 0");
  std::string buffer;
  for (;;) {
    char chunk[65536];
    const ssize_t n = ::read(kRequestFd, chunk, sizeof chunk);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) std::_Exit(0);
    buffer.append(chunk, static_cast<std::size_t>(n));
    for (std::size_t end; (end = buffer.find('\n')) != std::string::npos;) {
      const std::string line = buffer.substr(0, end);
      buffer.erase(0, end + 1);
      if (line == "quit") std::_Exit(0);
      dispatch(line);
    }
  }
}

}  // namespace sockagent

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr, "usage: sockagent DIRECTORY NAME [REQUEST]\n");
    return 2;
  }
  // argv[0] rather than /proc/self/exe: a sandbox may hide /proc.
  sockagent::g_identity = {argv[0], argv[1]};
  sockagent::serve(argv[2], argc == 4 ? argv[3] : "0");
}
