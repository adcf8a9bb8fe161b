#include "driver/fd_store.h"

#include <time.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "transport/local/fd_message.h"

namespace mw {

struct FdStore::Record {
  StoreKey key;
  uint64_t serial;
  uint32_t live;
  uint32_t size;
  std::byte data[kMaxStoreData];

  std::span<const std::byte> bytes() const {
    return std::as_bytes(std::span(this, 1)).first(offsetof(Record, data) + size);
  }
  bool fits(const ReceivedMessage& m) const {
    return m.bytes >= offsetof(Record, data) && size <= kMaxStoreData &&
           m.bytes == offsetof(Record, data) + size && m.fd_count <= kMaxStoreFds;
  }
};

namespace {

constexpr int kQueueBytes = 8 * 1024 * 1024;

std::vector<int> raw(std::span<const UniqueFd> fds) {
  std::vector<int> out;
  for (const UniqueFd& fd : fds) out.push_back(fd.get());
  return out;
}

Error full_or(const Error& e) {
  if (e.fault == Fault::would_block) return {Fault::limit, 0, "the descriptor store is full"};
  return e;
}

}  // namespace

FdStore::FdStore(int in, int out) : in_(in), out_(out) {
  if (in_ < 0) return;
  // Room for every group and many listeners; without the privilege the system's limit has to do.
  if (::setsockopt(in_, SOL_SOCKET, SO_SNDBUFFORCE, &kQueueBytes, sizeof kQueueBytes) < 0)
    (void)::setsockopt(in_, SOL_SOCKET, SO_SNDBUF, &kQueueBytes, sizeof kQueueBytes);
}

template <class Keep>
Status FdStore::rotate(Keep&& keep) {
  Record mark{};  // of this pass; one that an earlier driver left when it was killed is not kept
  mark.key = {StoreKind::mark, static_cast<uint32_t>(::getpid())};
  mark.serial = static_cast<uint64_t>(monotonic_ns());
  if (auto sent = send_message(in_, mark.bytes(), {}, MSG_DONTWAIT); !sent)
    return full_or(sent.error());
  records_ = 0;
  for (bool at_mark = false; !at_mark;) {
    Record r{};
    auto m = receive_message(out_, writable_bytes_of(r), MSG_DONTWAIT | MSG_PEEK);
    if (!m && m.error().fault != Fault::peer) return m.error();
    if (m && r.fits(*m)) {
      const std::span<UniqueFd> fds{m->fds, m->fd_count};
      at_mark = r.key == mark.key && r.serial == mark.serial;
      if (r.key.kind != StoreKind::mark && keep(r, fds)) {
        if (auto sent = send_message(in_, r.bytes(), raw(fds), MSG_DONTWAIT); !sent)
          return full_or(sent.error());
        ++records_;
      }
    }
    // Takes the one that was looked at; what it was is known by now.
    if (auto taken = receive_message(out_, writable_bytes_of(r), MSG_DONTWAIT);
        !taken && taken.error().fault != Fault::peer)
      return taken.error();
  }
  return Ok{};
}

Result<std::map<StoreKey, StoreEntry>> FdStore::load() {
  std::map<StoreKey, StoreEntry> found;
  if (in_ < 0) return found;
  std::map<StoreKey, uint64_t> newest;
  auto passed = rotate([&](const Record& r, std::span<const UniqueFd> fds) {
    next_serial_ = std::max(next_serial_, r.serial + 1);
    uint64_t& serial = newest[r.key];
    if (r.serial < serial) return true;
    serial = r.serial;
    live_.erase(r.key);
    found.erase(r.key);
    if (r.live == 0) return true;
    StoreEntry& entry = found[r.key];
    entry.data.assign(r.data, r.data + r.size);
    for (const UniqueFd& fd : fds) {
      UniqueFd copy{::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3)};
      if (copy) entry.fds.push_back(std::move(copy));
    }
    live_[r.key] = r.serial;
    return true;
  });
  if (!passed) return passed.error();
  if (auto compacted = compact(); !compacted) return compacted.error();
  return found;
}

Status FdStore::compact() {
  return rotate([&](const Record& r, std::span<const UniqueFd>) {
    const auto it = live_.find(r.key);
    return it != live_.end() && it->second == r.serial;
  });
}

Status FdStore::append(StoreKey key, bool live, std::span<const std::byte> data,
                       std::span<const int> fds) {
  if (in_ < 0) return Ok{};
  if (data.size() > kMaxStoreData || fds.size() > kMaxStoreFds)
    return Error{Fault::limit, 0, "record for the descriptor store"};
  Record r{};
  r.key = key;
  r.serial = next_serial_++;
  r.live = live ? 1 : 0;
  r.size = static_cast<uint32_t>(data.size());
  std::copy(data.begin(), data.end(), r.data);
  if (auto sent = send_message(in_, r.bytes(), fds, MSG_DONTWAIT); !sent)
    return full_or(sent.error());
  ++records_;
  if (live) {
    live_[key] = r.serial;
  } else {
    live_.erase(key);
  }
  // At once, so that no descriptor of something that ended stays open here.
  if (records_ > live_.size()) return compact();
  return Ok{};
}

Status FdStore::put(StoreKey key, std::span<const std::byte> data, std::span<const int> fds) {
  return append(key, true, data, fds);
}

Status FdStore::drop(StoreKey key) {
  if (!live_.contains(key)) return Ok{};
  return append(key, false, {}, {});
}

}  // namespace mw
