#include "driver/listeners.h"

#include <poll.h>
#include <sys/socket.h>

#include <cstring>

#include "base/log.h"
#include "base/socket_option.h"
#include "transport/local/fd_message.h"
#include "transport/local/listener_record.h"

namespace mw {
namespace {

bool hung_up(int fd) {
  pollfd p{fd, 0, 0};
  return ::poll(&p, 1, 0) == 1 && (p.revents & POLLHUP) != 0;
}

}  // namespace

Status Listeners::check(const ControlListener& r, int end) const {
  if (socket_option(end, SO_DOMAIN) != AF_UNIX || socket_option(end, SO_TYPE) != SOCK_STREAM)
    return Error{Fault::peer, 0, "announcement of a listener"};
  return check_listener(r, slots_);
}

Status Listeners::put(const ControlListener& record, UniqueFd end) {
  if (auto checked = check(record, end.get()); !checked) return checked;
  if (listeners_.size() == kMaxListeners && !listeners_.contains(record.slot))
    return Error{Fault::limit, 0, "too many listeners"};
  const int fds[] = {end.get()};
  if (auto stored = store_.put({StoreKind::listener, record.slot}, bytes_of(record), fds); !stored)
    log_line("mwcommsd", "a listener will be lost if driver and stack die together: %s",
             stored.error().where);
  listeners_[record.slot] = {record, std::move(end)};
  return Ok{};
}

void Listeners::restore(uint32_t slot, StoreEntry entry) {
  ControlListener record{};
  if (entry.data.size() != sizeof record || entry.fds.size() != 1) return;
  std::memcpy(&record, entry.data.data(), sizeof record);
  if (record.slot != slot || !check(record, entry.fds[0].get())) return;
  listeners_[slot] = {record, std::move(entry.fds[0])};
}

void Listeners::drop(uint32_t slot, uint32_t gen) {
  const auto it = listeners_.find(slot);
  if (it == listeners_.end() || it->second.record.gen != gen) return;
  listeners_.erase(it);
  if (auto dropped = store_.drop({StoreKind::listener, slot}); !dropped)
    log_line("mwcommsd", "cannot forget a listener: %s", dropped.error().where);
}

void Listeners::drop_closed() {
  std::vector<std::pair<uint32_t, uint32_t>> closed;
  for (const auto& [slot, l] : listeners_) {
    if (hung_up(l.end.get())) closed.emplace_back(slot, l.record.gen);
  }
  for (const auto& [slot, gen] : closed) drop(slot, gen);
}

}  // namespace mw
