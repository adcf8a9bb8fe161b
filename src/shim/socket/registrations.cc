#include "shim/socket/registrations.h"

#include <sys/mman.h>

#include <bit>
#include <cerrno>

#include "shim/process/descriptors.h"
#include "shim/process/process.h"

namespace mw::shim {
namespace {

using A = StdAtomics;

constexpr uint32_t kRecordsAPiece = 2048;
constexpr uint64_t kPiece = sizeof(Registration) * kRecordsAPiece;
static_assert(kPiece % MW_PAGE == 0);

// All first registrations stand side by side, then all second ones: few sockets have those.
uint64_t bytes_for(uint32_t slots) {
  return sizeof(Registration) * uint64_t{slots} * MW_MAX_WATCHES;
}

// One for each group, as MW_MAX_GROUPS of them in our data would be too many for programs that have few.
Registrations* all = nullptr;
constinit uint64_t here[MW_MAX_GROUPS / 64];  // which of them are open

template <class Visit>
void each_here(Visit&& visit) {
  for (uint32_t word = 0; word < MW_MAX_GROUPS / 64; ++word)
    for (uint64_t left = A::load_acquire(here[word]); left != 0; left &= left - 1)
      visit(all[word * 64 + static_cast<uint32_t>(std::countr_zero(left))]);
}

}  // namespace

bool have_registrations() {
  if (A::load_acquire(all) != nullptr) return true;
  const size_t bytes = sizeof(Registrations) * MW_MAX_GROUPS;
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  Registrations* none = nullptr;
  if (!std::atomic_ref(all).compare_exchange_strong(none, static_cast<Registrations*>(memory)))
    ::munmap(memory, bytes);
  return true;
}

Registrations& registrations_of(uint32_t group) {
  return all[group];
}

void forget_registrations(uint32_t slot, uint32_t gen) {
  each_here([&](Registrations& r) {
    const InRegistrations in(r);
    if (in) in.forget(slot, gen);
  });
}

void registrations_after_fork() {
  each_here([](Registrations& r) { r.after_fork(); });
}

void map_registrations() {
  each_here([](Registrations& r) { r.map_all(); });
}

bool is_record_of(const Registration& r, uint32_t gen, int fd) {
  return gen != 0 && A::load_relaxed(const_cast<uint32_t&>(r.gen)) == gen &&
         A::load_relaxed(const_cast<int32_t&>(r.fd)) == fd;
}

int Registrations::make_memory(uint32_t slots) {
  auto memory = make_sealed_memfd("mw-registrations", bytes_for(slots));
  return memory ? memory->release() : -memory.error().err;
}

Status Registrations::open(int fd, uint32_t slots) {
  auto file = check_sealed(fd);
  Status opened = file ? Status{Ok{}} : Status{file.error()};
  if (opened && file->bytes < bytes_for(slots))
    opened = Error{Fault::peer, 0, "memory of registrations is too small"};
  const int hidden = hide(fd);
  // Threads that are still in what was closed before keep it.
  pieces_ = Pieces{};
  if (opened) {
    file->fd = hidden;
    opened = pieces_.open(*file, 0, bytes_for(slots), kPiece, Pieces::Fork::without);
  }
  if (!opened) {
    unhide_and_close(hidden);
    return opened;
  }
  fd_ = hidden;
  slots_ = slots;
  const auto group = static_cast<uint32_t>(this - all);
  A::fetch_or(here[group / 64], uint64_t{1} << group % 64);
  A::fetch_or(users_, kOpen);
  return Ok{};
}

void Registrations::close() {
  const uint32_t was = A::fetch_and(users_, ~kOpen);
  if ((was & kOpen) == 0) return;
  const auto group = static_cast<uint32_t>(this - all);
  A::fetch_and(here[group / 64], ~(uint64_t{1} << group % 64));
  unhide_and_close(fd_);
  if (was == kOpen) pieces_.close();
}

void Registrations::map_all() {
  (void)pieces_.map_all();
}

void Registrations::after_fork() {
  users_ = kOpen;  // the other threads are not here
  if (!process.confined) pieces_.forget();
}

InRegistrations::InRegistrations(Registrations& of)
    : all_(of), open_((A::fetch_add(of.users_, 1u) & Registrations::kOpen) != 0) {}

InRegistrations::~InRegistrations() {
  // The last one out of what was closed meanwhile.
  if (A::fetch_add(all_.users_, ~0u) == 1 && open_) all_.pieces_.close();
}

Registration* InRegistrations::at(uint32_t slot, uint32_t i) const {
  const uint64_t index = uint64_t{i} * all_.slots_ + slot;
  std::byte* const piece = all_.pieces_.get(static_cast<uint32_t>(index / kRecordsAPiece));
  return piece == nullptr ? nullptr
                          : reinterpret_cast<Registration*>(piece) + index % kRecordsAPiece;
}

void InRegistrations::forget(uint32_t slot, uint32_t gen) const {
  for (uint32_t i = 0; i < MW_MAX_WATCHES; ++i) {
    const uint64_t index = uint64_t{i} * all_.slots_ + slot;
    const auto number = static_cast<uint32_t>(index / kRecordsAPiece);
    if (number >= all_.pieces_.used_end()) return;
    std::byte* const piece = all_.pieces_.find(number);
    if (piece == nullptr) continue;
    Registration& r = reinterpret_cast<Registration*>(piece)[index % kRecordsAPiece];
    if (A::load_relaxed(r.gen) == gen) A::store_relaxed(r.gen, 0u);
  }
}

}  // namespace mw::shim
