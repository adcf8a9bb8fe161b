#include "ins/control/control_core.h"

#include <netinet/in.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>
#include <string>

namespace mw {
namespace {

constexpr size_t kMostQuestions = 4096;

uint16_t port_of(const mw_addr& a) {
  // The port stands at the same place in both families.
  sockaddr_in in{};
  std::memcpy(&in, a.bytes, sizeof in);
  return ntohs(in.sin_port);
}

}  // namespace

void ControlCore::tell_workers(WorkerNote::Kind kind) const {
  if (!workers_.started()) return;
  for (const auto& queue : ins_.to_worker) queue->post(WorkerNote(kind));
}

void ControlCore::tell_listeners() const {
  for (const auto& [slot, l] : listeners_) driver_.listener_up(*l.up, l.placeholder.get());
}

bool ControlCore::ask(const InsRequest& r) {
  if (r.slot >= ins_.channel.geometry().slots || pending_.size() >= kMostQuestions ||
      pending_.count(r.id) != 0)
    return false;
  const uint32_t workers = ins_.channel.geometry().workers;
  const bool all = r.op == InsOp::cut_peer || r.op == InsOp::all_option ||
                   r.op == InsOp::peer_cap || r.op == InsOp::count_peers || r.op == InsOp::allow ||
                   r.op == InsOp::forget;
  Pending& p = pending_[r.id];
  p.op = r.op;
  p.left = all ? workers : 1;
  p.reply.id = r.id;
  if (r.op == InsOp::forget) {
    // Here, and once: what is asked for next may reach one worker before another forgets.
    const uint32_t blocked = ins_.wishes.forget();
    p.reply.len = sizeof blocked;
    std::memcpy(p.reply.value, &blocked, sizeof blocked);
  }
  for (uint32_t w = 0; w < workers; ++w) {
    if (!all && w != r.slot % workers) continue;
    WorkerNote note(WorkerNote::Kind::request);
    note.request = r;
    ins_.to_worker[w]->post(std::move(note));
  }
  return true;
}

// The answer of one worker; the driver gets one when all have given theirs.
void ControlCore::on_reply(const InsReply& reply) {
  const auto it = pending_.find(reply.id);
  if (it == pending_.end()) return;
  Pending& p = it->second;
  // What one of them tells is not lost to another that has nothing to tell.
  const bool tells = reply.status != 0 || reply.len >= p.reply.len;
  if (p.reply.status == 0 && tells) p.reply = reply;
  if (p.op == InsOp::cut_peer && p.reply.len == sizeof p.cut) {
    // Each worker cuts those that it has.
    if (reply.len == sizeof p.cut) {
      uint32_t cut = 0;
      std::memcpy(&cut, reply.value, sizeof cut);
      p.cut += cut;
    }
    std::memcpy(p.reply.value, &p.cut, sizeof p.cut);
  }
  if (--p.left != 0) return;
  const InsReply answer = p.reply;
  pending_.erase(it);
  driver_.reply(answer);
}

bool ControlCore::on_notes() {
  bool over = false;
  if (adopted_) publish_repairs();
  bool listeners_changed = false;
  for (ControlNote& note : ins_.to_control.take()) {
    switch (note.kind) {
      case ControlNote::Kind::listener_up: {
        Listener& l = listeners_[note.slot];
        l.up = std::move(note.listener);
        l.placeholder = std::move(note.placeholder);
        driver_.listener_up(*l.up, l.placeholder.get());
        listeners_changed = true;
        break;
      }
      case ControlNote::Kind::listener_down: {
        const auto it = listeners_.find(note.slot);
        if (it == listeners_.end() || it->second.up->gen != note.gen) break;
        listeners_.erase(it);
        driver_.listener_down(note.slot, note.gen);
        listeners_changed = true;
        break;
      }
      case ControlNote::Kind::bypass:
        driver_.bypass(note.slot, note.gen);
        break;
      case ControlNote::Kind::resolve:
        resolver_.lookup(note.call, *note.request);
        break;
      case ControlNote::Kind::lent:
        driver_.lent(note.option, note.socket.get());
        break;
      case ControlNote::Kind::reply:
        on_reply(note.reply);
        break;
      case ControlNote::Kind::stopped:
        over = over || ins_.poisoned.load() == nullptr;
        break;
    }
  }
  if (listeners_changed) publish_listeners();
  return !over;
}

void ControlCore::publish_listeners() {
  std::set<uint16_t> ports;
  std::string options;
  for (const auto& [slot, l] : listeners_) {
    const uint16_t port = port_of(l.up->local);
    ports.insert(port);
    for (uint32_t k = 0; k < l.up->option_count; ++k) {
      const ReplayOption& o = l.up->options[k];
      char text[128];
      int n = std::snprintf(text, sizeof text, "%s%u:%d:%d=", options.empty() ? "" : " ", port,
                            o.level, o.name);
      for (uint32_t b = 0; b < o.len; ++b)
        n += std::snprintf(text + n, sizeof text - static_cast<size_t>(n), "%02x", o.value[b]);
      options += text;
    }
  }
  std::string list;
  for (const uint16_t port : ports) list += (list.empty() ? "" : " ") + std::to_string(port);
  publisher_.set("listening_ports", list);
  publisher_.set("sockopts", options);
}

void ControlCore::on_tick() {
  const uint32_t tick = ins_.tick.fetch_add(1) + 1;
  // As far as the slowest of our loops has come.
  uint32_t beat = tick;
  if (workers_.started())
    for (const auto& s : ins_.stats) beat = std::min(beat, s->beat.load(std::memory_order_relaxed));
  publisher_.heartbeat(beat);
  if (!adopted_) return;
  uint64_t received = 0;
  uint64_t sent = 0;
  for (const auto& s : ins_.stats) {
    received += s->bytes_recv.load(std::memory_order_relaxed);
    sent += s->bytes_sent.load(std::memory_order_relaxed);
  }
  char text[96];
  std::snprintf(text, sizeof text, "%x:%x:%llx:%llx", ins_.channel.geometry().slots,
                ins_.slots.open_count(), static_cast<unsigned long long>(received),
                static_cast<unsigned long long>(sent));
  publisher_.set("network_stats", text);
  publish_repairs();
}

void ControlCore::publish_repairs() {
  uint64_t repairs = 0;
  for (uint32_t w = 0; w < ins_.channel.geometry().workers; ++w)
    repairs += ins_.channel.sock_news(w).repairs();
  publisher_.set("repairs", std::to_string(repairs));
}

}  // namespace mw
