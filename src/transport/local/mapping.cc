#include "transport/local/mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include "base/raw_syscall.h"

namespace mw {
namespace {
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
}

Mapping& Mapping::operator=(Mapping&& o) noexcept {
  std::swap(base_, o.base_);
  std::swap(bytes_, o.bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (base_ != nullptr) ::munmap(base_, bytes_);
}

Result<UniqueFd> make_sealed_memfd(const char* name, uint64_t bytes) {
  UniqueFd fd{::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  if (!fd) return Error{Fault::sys, errno, "memfd_create"};
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) < 0)
    return Error{Fault::sys, errno, "ftruncate of a region"};
  if (::fcntl(fd.get(), F_ADD_SEALS, kSeals) < 0) return Error{Fault::sys, errno, "F_ADD_SEALS"};
  return fd;
}

Result<SealedFile> check_sealed(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals)
    return Error{Fault::peer, 0, "the region's memory is not sealed"};
  struct stat st {};
  if (raw_fstat(fd, st) < 0) return Error{Fault::sys, errno, "fstat of a region"};
  return SealedFile{fd, static_cast<uint64_t>(st.st_size), st.st_dev, st.st_ino};
}

Result<Mapping> map_range(const SealedFile& file, uint64_t offset, uint64_t bytes,
                          bool never_locked, void* wish) {
  constexpr int kBoth = PROT_READ | PROT_WRITE;
  void* base = ::mmap(wish, bytes, never_locked ? PROT_NONE : kBoth, MAP_SHARED | MAP_NORESERVE,
                      file.fd, static_cast<off_t>(offset));
  if (base == MAP_FAILED) return Error{Fault::sys, errno, "mmap of a region"};
  const bool unlocked =
      !never_locked || (::munlock(base, bytes) == 0 && ::mprotect(base, bytes, kBoth) == 0);
  if (!unlocked || ::madvise(base, bytes, MADV_DONTDUMP) < 0) {
    const int err = errno;
    ::munmap(base, bytes);
    return Error{Fault::sys, err, "preparing a region"};
  }
  return Mapping{static_cast<std::byte*>(base), bytes};
}

Result<Mapping> map_sealed(int fd, bool never_locked) {
  auto file = check_sealed(fd);
  if (!file) return file.error();
  return map_range(*file, 0, file->bytes, never_locked);
}

}  // namespace mw
