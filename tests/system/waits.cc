// waits - leaves a wait for a socket in the ways that a language run-time hides: by siglongjmp() out of it, and by
// waiting for the same socket in a handler. Usage: waits jump|handler. Exits 0 when everybody got his bytes.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

namespace {

int g_served = -1;
sigjmp_buf g_before;
std::atomic<pid_t> g_main;
char g_of_handler = 0;

void require(bool ok, const char* what) {
  if (ok) return;
  std::perror(what);
  std::_Exit(1);
}

// A connection to ourselves; returns the client's end.
int make_connection() {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  auto* const address = reinterpret_cast<sockaddr*>(&a);
  socklen_t size = sizeof a;
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  const int client = ::socket(AF_INET, SOCK_STREAM, 0);
  require(::bind(listener, address, size) == 0 && ::listen(listener, 1) == 0, "listen");
  require(::getsockname(listener, address, &size) == 0, "getsockname");
  require(::connect(client, address, size) == 0, "connect");
  g_served = ::accept(listener, nullptr, nullptr);
  require(g_served >= 0, "accept");
  return client;
}

void await_asleep(pid_t thread) {
  const std::string path = "/proc/self/task/" + std::to_string(thread) + "/stat";
  char state = 0;
  while (state != 'S') {
    std::FILE* const f = std::fopen(path.c_str(), "r");
    require(f != nullptr && std::fscanf(f, "%*d (%*[^)]) %c", &state) == 1, "stat");
    std::fclose(f);
  }
}

char receive() {
  char byte = 0;
  require(::recv(g_served, &byte, 1, 0) == 1, "recv");
  return byte;
}

void install(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR1, &action, nullptr);
}

void interrupt_main() {
  await_asleep(g_main);
  ::syscall(SYS_tgkill, ::getpid(), g_main.load(), SIGUSR1);
}

int jump(int client) {
  install([](int) { siglongjmp(g_before, 1); });
  std::thread other(interrupt_main);
  if (sigsetjmp(g_before, 1) == 0) receive();
  other.join();
  std::atomic<pid_t> tid = 0;
  std::thread reader([&] {
    tid = ::gettid();
    require(receive() == 'a', "the byte");
  });
  while (tid == 0) std::this_thread::yield();
  await_asleep(tid);
  require(::send(client, "a", 1, 0) == 1, "send");
  reader.join();
  ::pthread_exit(nullptr);  // finds nothing of the wait that was left
}

int handler(int client) {
  install([](int) { g_of_handler = receive(); });
  std::thread other([client] {
    interrupt_main();
    await_asleep(g_main);
    require(::send(client, "a", 1, 0) == 1, "send");
    // The handler returns, and the main thread sleeps again.
    while (__atomic_load_n(&g_of_handler, __ATOMIC_RELAXED) == 0) std::this_thread::yield();
    await_asleep(g_main);
    require(::send(client, "b", 1, 0) == 1, "send");
  });
  require(receive() == 'b' && g_of_handler == 'a', "the bytes");
  other.join();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  ::alarm(30);
  g_main = ::gettid();
  const int client = make_connection();
  if (argc == 2 && std::strcmp(argv[1], "jump") == 0) return jump(client);
  if (argc == 2 && std::strcmp(argv[1], "handler") == 0) return handler(client);
  return 2;
}
