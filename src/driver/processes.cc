#include "driver/processes.h"

#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/pidfd.h"
#include "transport/local/fd_message.h"

namespace mw {
namespace {

constexpr int kAcceptsPerTurn = 64;
constexpr int64_t kDoorPauseMs = 5;

// Takes the same time whatever the guess.
bool same_token(const uint8_t* a, const uint8_t* b, size_t n) {
  volatile uint8_t difference = 0;
  for (size_t i = 0; i < n; ++i) difference = static_cast<uint8_t>(difference | (a[i] ^ b[i]));
  return difference == 0;
}

bool has_input(int fd) {
  pollfd p{fd, POLLIN, 0};
  return ::poll(&p, 1, 0) == 1;
}

uint32_t status_of(const Error& e) {
  switch (e.fault) {
    case Fault::peer:
      return EINVAL;
    case Fault::limit:
      return ENOSPC;
    case Fault::sys:
      return static_cast<uint32_t>(e.err);
    case Fault::would_block:
      return EAGAIN;
    case Fault::shutdown:
      return EPIPE;
  }
  return EIO;
}

}  // namespace

Status Processes::listen() {
  spare_ = UniqueFd{::open("/dev/null", O_RDONLY | O_CLOEXEC)};
  // Of our descriptors strangers take a quarter at most, those with placeholders another one.
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) < 0) return Error{Fault::sys, errno, "getrlimit"};
  const size_t most = std::min<size_t>(Strangers::kMost, limit.rlim_cur / 4);
  strangers_ = Strangers(most);
  silent_placeholders_ = Strangers(most);
  door_timer_ = UniqueFd{::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
  if (!door_timer_) return Error{Fault::sys, errno, "timerfd_create"};
  if (auto s = poller_.add(door_timer_.get(), EPOLLIN, Source::door_timer); !s) return s;
  if (auto added = poller_.add(options_.attach_fd, EPOLLIN, Source::attach); !added) return added;
  return poller_.add(options_.placeholders_fd, EPOLLIN, Source::placeholders);
}

// ---- the door ----

template <class Take>
void Processes::accept_some(int listener, Take&& take) {
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    const int64_t now = monotonic_ms();
    if (!strangers_.may_come(now) || !silent_placeholders_.may_come(now)) return open_door(false);
    UniqueFd fd{::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (fd) {
      take(std::move(fd));
      continue;
    }
    if (errno != EMFILE && errno != ENFILE) return;
    if (!refuse_one(listener)) return;
    strangers_.count_wasted();
    shortages_.say("a process was refused: the driver is out of file descriptors");
  }
}

void Processes::accept_new() {
  accept_some(options_.attach_fd, [this](UniqueFd fd) { admit(std::move(fd)); });
}

void Processes::accept_placeholders() {
  accept_some(options_.placeholders_fd, [this](UniqueFd fd) { admit_placeholder(std::move(fd)); });
}

// Out of descriptors: left in the queue, a connection would wake us for ever. It gets an end of file
// instead. False: there was none.
bool Processes::refuse_one(int listener) {
  spare_.reset();
  UniqueFd refused{::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC)};
  const bool somebody = static_cast<bool>(refused);
  refused.reset();
  spare_ = UniqueFd{::open("/dev/null", O_RDONLY | O_CLOEXEC)};
  return somebody;
}

// While it is closed, who comes waits in the kernel.
void Processes::open_door(bool open) {
  if (door_open_ == open) return;
  const uint32_t events = open ? uint32_t{EPOLLIN} : 0;
  if (!poller_.modify(options_.attach_fd, events, Source::attach) ||
      !poller_.modify(options_.placeholders_fd, events, Source::placeholders))
    return;  // it stays as it was: nobody is kept out by that
  door_open_ = open;
  arm_door();
}

void Processes::arm_door() {
  int64_t due = INT64_MAX;
  if (!door_open_) due = monotonic_ms() + kDoorPauseMs;
  for (const Strangers* s : {&strangers_, &silent_placeholders_})
    if (s->size() != 0) due = std::min(due, s->due_ms());
  if (due == INT64_MAX || (door_due_ms_ != 0 && door_due_ms_ <= due)) return;
  door_due_ms_ = due;
  itimerspec t{};
  t.it_value.tv_sec = due / 1000;
  t.it_value.tv_nsec = due % 1000 * 1'000'000;
  (void)::timerfd_settime(door_timer_.get(), TFD_TIMER_ABSTIME, &t, nullptr);
}

void Processes::on_door_timer() {
  uint64_t expired = 0;
  if (::read(door_timer_.get(), &expired, sizeof expired) < 0) return;
  door_due_ms_ = 0;
  const int64_t now = monotonic_ms();
  while (const uint32_t id = strangers_.overdue(now)) forget(id);
  while (const uint32_t id = silent_placeholders_.overdue(now)) on_placeholder(id);
  open_door(true);
  arm_door();
}

void Processes::admit(UniqueFd connection) {
  auto who = credentials_of(connection.get());
  if (!who) return;
  const uint32_t uid = who->uid;
  const uint32_t id = next_id_++;
  if (!poller_.add(connection.get(), EPOLLIN | EPOLLRDHUP, Source::process, id)) return;
  attachments_[id] = {std::move(connection), std::move(*who)};
  if (const uint32_t other = strangers_.in_the_way_of(uid)) {
    on_message(other, 0);  // it may have said by now what it wants
    if (strangers_.contains(other)) forget(other);
  }
  strangers_.add(id, uid, monotonic_ms());
  on_message(id, 0);
  arm_door();
}

void Processes::admit_placeholder(UniqueFd fd) {
  auto who = credentials_of(fd.get());
  if (!who) return;
  const uint32_t id = next_id_++;
  if (!poller_.add(fd.get(), EPOLLIN | EPOLLRDHUP, Source::placeholder, id)) return;
  if (const uint32_t other = silent_placeholders_.in_the_way_of(who->uid)) on_placeholder(other);
  const bool asks = has_input(fd.get());
  placeholders_[id] = std::move(fd);
  silent_placeholders_.add(id, who->uid, monotonic_ms());
  if (asks) on_placeholder(id);
  arm_door();
}

// It says now what it wants, or it goes.
void Processes::on_placeholder(uint32_t id) {
  const auto it = placeholders_.find(id);
  if (it == placeholders_.end()) return;
  const UniqueFd fd = std::move(it->second);
  placeholders_.erase(it);
  silent_placeholders_.remove(id);
  poller_.remove(fd.get());
  PlaceholderRequest request{};
  const ssize_t n = ::recv(fd.get(), &request, sizeof request, MSG_DONTWAIT);
  if (n != static_cast<ssize_t>(sizeof request) || request.version != MW_PROTOCOL_VERSION ||
      !same_token(request.token, options_.token.data(), options_.token.size()))
    return silent_placeholders_.count_wasted();  // its end tells the process
  const int fds[] = {fd.get()};
  if (auto sent = send_message(options_.drop_pvm_fd, bytes_of(request.record), fds, MSG_DONTWAIT);
      !sent)
    faults_.say("cannot pass a placeholder on: %s", sent.error().where);
}

// It has shown the token. False: too many have.
bool Processes::know(uint32_t id, Attachment& a) {
  strangers_.remove(id);
  look_up(a.who);
  const auto process = per_process_.find(a.who.pid);
  const auto user = per_user_.find(a.who.uid);
  const size_t of_process = process == per_process_.end() ? 0 : process->second.known;
  const size_t of_user = user == per_user_.end() ? 0 : user->second;
  if (of_process >= kMaxPerProcess || of_user >= kMaxPerUser) {
    crowds_.say("%s may not attach: it has %zu connections, user %u has %zu",
                describe(a.who).c_str(), of_process, a.who.uid, of_user);
    return false;
  }
  a.known = true;
  ++per_process_[a.who.pid].known;
  ++per_user_[a.who.uid];
  return true;
}

void Processes::refuse_crowd(uint32_t id, AttachType request) {
  AttachReply reply = reply_to(request);
  reply.status = EAGAIN;  // as fork() with too many processes
  (void)send_message(attachments_.at(id).connection.get(), bytes_of(reply), {}, MSG_DONTWAIT);
  forget(id);
}

// ---- what they say ----

void Processes::on_message(uint32_t id, uint32_t events) {
  const auto it = attachments_.find(id);
  if (it == attachments_.end()) return;
  Attachment& a = it->second;
  AttachRequest request{};
  auto m = receive_message(a.connection.get(), writable_bytes_of(request), MSG_DONTWAIT);
  if (!m && m.error().fault == Fault::would_block && (events & (EPOLLHUP | EPOLLRDHUP)) == 0)
    return;
  bool good = static_cast<bool>(m);
  if (good) {
    good = m->bytes == sizeof request &&
           same_token(request.token, options_.token.data(), options_.token.size());
    if (good && !a.known && !know(id, a)) return refuse_crowd(id, request.type);
    if (good && request.type == AttachType::attach && m->fd_count == 0) {
      good = answer_attach(a, id);
    } else if (good && request.type == AttachType::group_open && m->fd_count == 3) {
      good = answer_group_open(a, *m);
    } else if (good && request.type == AttachType::group_find && m->fd_count == 1) {
      good = answer_group_find(a, m->fds[0].get());
    } else if (good && request.type == AttachType::group_keep && m->fd_count == 1) {
      good = answer_group_keep(a, m->fds[0].get());
    } else if (good && request.type == AttachType::violation && m->fd_count == 0) {
      on_violation(a.who, request.epoch);
    } else if (good && request.type == AttachType::option && m->fd_count == 1) {
      return on_option(id, request.option, m->fds[0].get());  // the answer may end the connection
    } else if (good && request.type == AttachType::introduce && m->fd_count == 1 && a.admitted) {
      admit(std::move(m->fds[0]));
    } else {
      good = false;
    }
    if (!good && a.who.command.empty()) look_up(a.who);
    if (!good) refusals_.say("refused %s: its request does not fit", describe(a.who).c_str());
  }
  if (!good) connection_ended(id);
}

void Processes::connection_ended(uint32_t id) {
  Attachment& a = attachments_.at(id);
  const bool alive = a.admitted && a.who.death && !has_died(a.who.death.get());
  if (!alive || per_process_.at(a.who.pid).admitted > 1) {
    forget(id);
  } else if (a.connection) {
    poller_.remove(a.connection.get());
    a.connection.reset();
  }
}

bool Processes::answer_attach(Attachment& a, uint32_t id) {
  const AttachReply reply = reply_to(AttachType::attach);
  if (!a.admitted) {
    // A process that died meanwhile has no pidfd: its connection ends by itself.
    if (a.who.death) {
      if (!poller_.add(a.who.death.get(), EPOLLIN, Source::process_death, id)) return false;
    }
    a.admitted = true;
    ++per_process_.at(a.who.pid).admitted;
    on_process(a.who.pid, true);
  }
  std::vector<int> fds{options_.channel_fd, options_.session_fd, options_.drop_pvm_fd};
  fds.insert(fds.end(), options_.bell_fds.begin(), options_.bell_fds.end());
  return static_cast<bool>(send_message(a.connection.get(), bytes_of(reply), fds, MSG_DONTWAIT));
}

AttachReply Processes::reply_to(AttachType request) const {
  AttachReply reply{};
  reply.type = request;
  reply.version = MW_PROTOCOL_VERSION;
  reply.geometry = memory_.geometry();
  return reply;
}

bool Processes::answer_group_find(Attachment& a, int epfd) {
  AttachReply reply = reply_to(AttachType::group_find);
  auto found = groups_.find(epfd);
  if (!found) {
    reply.status = status_of(found.error());
    return static_cast<bool>(send_message(a.connection.get(), bytes_of(reply), {}, MSG_DONTWAIT));
  }
  reply.group = found->group;
  const int fds[] = {found->bell, found->life.get(), found->registrations};
  return static_cast<bool>(send_message(a.connection.get(), bytes_of(reply), fds, MSG_DONTWAIT));
}

bool Processes::answer_group_keep(Attachment& a, int epfd) {
  AttachReply reply = reply_to(AttachType::group_keep);
  if (auto kept = groups_.keep(epfd); !kept) {
    reply.status = status_of(kept.error());
    faults_.say("%s: an epoll instance may be lost: %s", describe(a.who).c_str(),
                kept.error().where);
  }
  return static_cast<bool>(send_message(a.connection.get(), bytes_of(reply), {}, MSG_DONTWAIT));
}

bool Processes::answer_group_open(Attachment& a, ReceivedMessage& m) {
  AttachReply reply = reply_to(AttachType::group_open);
  auto group = groups_.open(std::move(m.fds[0]), std::move(m.fds[1]), std::move(m.fds[2]));
  if (group) {
    reply.group = *group;
    // Before the answer, so that the INS reads it before it can see the group in a socket's
    // watches.
    on_group_open(*group);
  } else {
    reply.status = status_of(group.error());
    faults_.say("%s gets no group: %s", describe(a.who).c_str(), group.error().where);
  }
  return static_cast<bool>(send_message(a.connection.get(), bytes_of(reply), {}, MSG_DONTWAIT));
}

void Processes::answer_option(uint32_t id, uint32_t status) {
  const auto it = attachments_.find(id);
  if (it == attachments_.end() || !it->second.connection) return;
  AttachReply reply = reply_to(AttachType::option);
  reply.status = status;
  if (!send_message(it->second.connection.get(), bytes_of(reply), {}, MSG_DONTWAIT))
    connection_ended(id);
}

void Processes::on_death(uint32_t id) {
  forget(id);
}

void Processes::forget(uint32_t id) {
  const auto it = attachments_.find(id);
  if (it == attachments_.end()) return;
  Attachment& a = it->second;
  if (a.connection) poller_.remove(a.connection.get());
  uint32_t died = 0;
  if (a.admitted) {
    if (!a.who.death || has_died(a.who.death.get())) died = a.who.pid;
    if (a.who.death) poller_.remove(a.who.death.get());
    --per_process_.at(a.who.pid).admitted;
    on_process(a.who.pid, false);
  }
  if (a.known) {
    if (--per_user_.at(a.who.uid) == 0) per_user_.erase(a.who.uid);
    if (--per_process_.at(a.who.pid).known == 0) per_process_.erase(a.who.pid);
  } else {
    strangers_.remove(id);
    strangers_.count_wasted();
  }
  attachments_.erase(it);
  if (died != 0) sweep_calls(died);
}

// The workers that sleep although there is work.
uint32_t Processes::workers_kept_waiting() {
  const Channel& channel = memory_.channel();
  uint32_t workers = 0;
  for (uint32_t w = 0; w < options_.bell_fds.size(); ++w)
    if (channel.sock_news(w).keeps_waiting() || channel.call_news(w).keeps_waiting())
      workers |= 1u << w;
  return workers;
}

void Processes::sweep_calls(uint32_t died) {
  const auto now = std::chrono::steady_clock::now();
  const std::map<uint32_t, Suspect> before = std::exchange(suspects_, {});
  const auto dead = memory_.free_dead_calls([&](uint32_t cell, uint32_t pid, uint32_t seq) {
    if (died != 0 && pid == died) return true;
    if (!is_dead(pid)) return false;
    const auto it = before.find(cell);
    const bool known = it != before.end() && it->second.pid == pid && it->second.seq == seq;
    const auto since = known ? it->second.since : now;
    suspects_[cell] = {pid, seq, since};
    return now - since >= kSuspectTime;
  });
  uint32_t rings = dead.rings;
  if (died != 0) {
    // It may have been killed between its note that it rings and the ring, or when it had taken a
    // ring that several sleep for.
    rings |= workers_kept_waiting();
    groups_.ring_those_kept_waiting();
  }
  for (size_t w = 0; w < options_.bell_fds.size(); ++w) {
    const uint64_t one = 1;
    // EAGAIN: it was rung so often already that it cannot be missed.
    if ((rings >> w & 1) != 0 && ::write(options_.bell_fds[w], &one, sizeof one) < 0 &&
        errno != EAGAIN)
      log_line("mwcommsd", "cannot ring worker %zu: error %d", w, errno);
  }
  for (const mw_drop_record& record : dead.sockets) announce_for_the_dead(record);
}

// The INS makes the socket, answers the cell, and finds that nobody has the placeholder. If its
// owner's own announcement is still on the way, the second to arrive is ignored.
void Processes::announce_for_the_dead(const mw_drop_record& record) {
  int pair[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) return;  // the next sweep
  const UniqueFd application{pair[0]};
  const UniqueFd ins{pair[1]};
  const int fds[] = {ins.get()};
  auto sent = send_message(options_.drop_pvm_fd, bytes_of(record), fds, MSG_DONTWAIT);
  if (!sent && sent.error().fault != Fault::would_block)
    log_line("mwcommsd", "cannot finish the call of a dead process: %s", sent.error().where);
}

size_t Processes::attached() const {
  return static_cast<size_t>(std::count_if(attachments_.begin(), attachments_.end(),
                                           [](const auto& a) { return a.second.admitted; }));
}

std::string Processes::names() const {
  constexpr size_t kNamed = 8;
  std::string text;
  size_t n = 0;
  for (const auto& [id, a] : attachments_) {
    if (!a.admitted) continue;
    if (n++ < kNamed) text += (text.empty() ? "" : " ") + describe(a.who);
  }
  if (n > kNamed) text += " and " + std::to_string(n - kNamed) + " more";
  return text.empty() ? "no attached process" : text;
}

}  // namespace mw
