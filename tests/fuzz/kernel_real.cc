// kernel_real.cc - kernel.h over the kernel that there is.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "fuzz_input.h"
#include "kernel.h"

namespace mw::fuzz::kernel {
namespace {

std::string place;

}  // namespace

void begin() {
  char name[] = "/dev/shm/mw-fuzz-XXXXXX";  // a disk would be most of the time
  require(::mkdtemp(name) != nullptr);
  place = name;
}
void end() {
  std::filesystem::remove_all(place);
}
std::string folder() {
  return place;
}

bool peers_can_be_ended() {
  return false;
}
void act_as_peer(uint32_t) {}
void act_as_driver() {}
void end_peer(uint32_t) {}
void name_peer(uint32_t, const char*, size_t) {}
uint32_t pid_of(uint32_t) {
  return static_cast<uint32_t>(::getpid());
}
void pass_ms(uint32_t) {}
void limit_descriptors(uint32_t) {}
void wrote(const void*, size_t) {}
uint64_t outcome() {
  return 0;
}

}  // namespace mw::fuzz::kernel
