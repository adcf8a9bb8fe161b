// The kernel module's core (kmod/core) against an INS that may store anything, anywhere, at any time.
//
// Every access of the core to shared memory comes here. A load gives what stands there or, whenever
// the input says so, any other value; between the operations the INS also does what an honest one
// would, so that sockets get far. What must hold: no access outside of the shared memory (the
// sanitizer's redzones and the checks below), and all private numbers fit together after each step. A
// breach that the core reports ends the object that it is about, as it would the channel.
#include <cstdlib>
#include <map>
#include <vector>

#include "fuzz_input.h"
#include "kmod/core/calls.h"
#include "kmod/core/extents.h"
#include "kmod/core/optlog.h"
#include "kmod/core/record.h"
#include "kmod/core/rset.h"
#include "kmod/core/slots.h"

namespace mw::fuzz {
namespace {

constexpr uint32_t kSlots = 3, kCells = 4, kBits = 300, kPages = 2 * MW_CHUNK_PAGES;

// Memory that the other side has too, each piece by itself, so that one byte beyond is a report.
struct Shared {
  std::vector<mw_slot> slots = std::vector<mw_slot>(kSlots);
  std::vector<mw_call> calls = std::vector<mw_call>(kCells);
  std::vector<uint64_t> news =
      std::vector<uint64_t>((sizeof(mw_ready_set) + (kBits + 63) / 64 * 8) / 8);
  std::vector<uint32_t> exts = std::vector<uint32_t>(2 * kSlots);
  std::vector<uint8_t> rx = std::vector<uint8_t>(kPages * MW_PAGE);
  std::vector<uint8_t> tx = std::vector<uint8_t>(kPages * MW_PAGE);

  bool holds(const void* at, size_t n) const {
    return in(slots, at, n) || in(calls, at, n) || in(news, at, n) || in(exts, at, n) ||
           in(rx, at, n) || in(tx, at, n);
  }
  template <class T>
  static bool in(const std::vector<T>& v, const void* at, size_t n) {
    const auto* const begin = reinterpret_cast<const uint8_t*>(v.data());
    const auto* const p = static_cast<const uint8_t*>(at);
    return p >= begin && p <= begin + v.size() * sizeof(T) &&
           n <= static_cast<size_t>(begin + v.size() * sizeof(T) - p);
  }
};

Shared shared;
// The application's memory: as much as the largest ring holds.
std::vector<uint8_t> source(1u << 20), sink(1u << 20);
Input* input = nullptr;  // what the hooks ask while an operation of the core runs

uint64_t real(const void* word, uint32_t size) {
  require(shared.holds(word, size));
  uint64_t value = 0;
  std::memcpy(&value, word, size);
  return value;
}
void put(void* word, uint32_t size, uint64_t value) {
  require(shared.holds(word, size));
  std::memcpy(word, &value, size);
}
// What the core finds there.
uint64_t seen(const void* word, uint32_t size) {
  const uint64_t value = real(word, size);
  switch (input->number<uint8_t>()) {
    case 1:
      return size == 4 ? input->number<uint32_t>() : input->number<uint64_t>();
    case 2:
      return size == 4 ? static_cast<uint32_t>(value + input->number<int8_t>())
                       : value ^ uint64_t { 1 } << input->below(64);
    case 3:
      return size == 4 ? 0xffffffffu : ~uint64_t{0};
    case 4:  // of an extent: one that may lie anywhere
      return mw_ext_of(input->number<uint16_t>(), MW_EXT_MIN_ORDER + input->below(MW_EXT_ORDERS));
    default:
      return value;
  }
}

struct Socket {
  bool open = false;
  mw_writer writer;
  mw_consumer reader;
  uint32_t gen = 0;
};

class Module {
 public:
  explicit Module(Input& in) : in_(in) {
    input = &in;
    for (mw_slot& s : shared.slots) s = {};
    for (mw_call& c : shared.calls) std::memset(&c, 0, offsetof(mw_call, payload));
    std::fill(shared.news.begin(), shared.news.end(), 0);
    std::fill(shared.exts.begin(), shared.exts.end(), MW_EXT_NONE);
    require(mw_pool_init(&pool_, units_.data(), kPages) == MW_OK);
    require(mw_pool_grow(&pool_) == MW_OK);
    mw_slots_init(&slots_, entries_.data(), shared.slots.data(), kSlots);
    mw_calls_init(&calls_, cells_.data(), shared.calls.data(), kCells);
    mw_rset_init(&set_, shared.news.data(), kBits);
    mw_optlog_init(&log_, log_bytes_, sizeof log_bytes_);
  }

  void step() {
    switch (in_.below(22)) {
      case 0:
        return accept(in_.below(kSlots + 1), 1 + in_.below(1000));
      case 1:
        return send();
      case 2:
        return receive();
      case 3:
        return datagram();
      case 4:
        return record();
      case 5:
        return close();
      case 6:
        return reap();
      case 7:
        return rest();
      case 8:
        return news();
      case 9:
        return call();
      case 10:
        return answers();
      case 11:
        return pool();
      case 12:
        return option();
      default:
        return honest();
    }
  }

  // Everything private fits together.
  void check() {
    uint32_t free = 0, used = 0, closing = 0, busy = 0, lookups = 0;
    std::map<uint32_t, uint32_t> pages;  // first page and number of every extent, free or not
    const auto add = [&](uint32_t page, uint32_t order) {
      require(pages.emplace(page, 1u << order).second);
    };
    for (uint32_t k = 0; k < MW_EXT_ORDERS; ++k) {
      for (uint32_t i = pool_.free[k]; i != MW_NOTHING; i = units_[i].next) {
        add(i * MW_UNIT_PAGES, k + MW_EXT_MIN_ORDER);
        free += 1u << (k + MW_EXT_MIN_ORDER);
      }
    }
    require(free == pool_.free_pages);
    for (uint32_t i = 0; i < kSlots; ++i) {
      const Socket& s = sockets_[i];
      const mw_slot_entry& e = entries_[i];
      require((e.state == MW_SLOT_USED) == s.open);
      used += e.state == MW_SLOT_USED;
      closing += e.state == MW_SLOT_CLOSING;
      for (uint32_t ext :
           {e.ext, s.open ? s.writer.ext : MW_EXT_NONE, s.open ? s.writer.next : MW_EXT_NONE})
        if (ext != MW_EXT_NONE) add(mw_ext_page(ext), mw_ext_order(ext));
      if (!s.open) continue;
      require(mw_producer_used(&s.writer.ring) <= s.writer.ring.mem.size);
      require(mw_consumer_ready(&s.reader) <= s.reader.mem.size);
    }
    for (uint32_t ext : held_) add(mw_ext_page(ext), mw_ext_order(ext));
    uint32_t at = 0;
    for (const auto& [page, count] : pages) {
      require(page == at);  // neither a hole nor an overlap
      at += count;
    }
    require(at == pool_.pages);
    require(used == slots_.used && closing == slots_.closing);
    for (const mw_cell& c : cells_) {
      busy += c.state != MW_CELL_FREE;
      lookups += c.state != MW_CELL_FREE && mw_is_lookup(c.op);
    }
    require(busy == calls_.busy && lookups == calls_.lookups && lookups <= kCells / 2);
    require(log_.used <= log_.room);
  }

 private:
  uint32_t* ext_of(uint32_t slot, bool rx) { return &shared.exts[slot * 2 + (rx ? 0 : 1)]; }
  // A socket, if the one that the input names is open.
  Socket* some(uint32_t* slot) {
    *slot = in_.below(kSlots);
    return sockets_[*slot].open ? &sockets_[*slot] : nullptr;
  }
  void give_back(uint32_t ext) {
    if (ext != MW_EXT_NONE) require(mw_pool_release(&pool_, ext) == MW_OK);
  }

  void accept(uint32_t slot, uint32_t gen) {
    uint32_t freed = MW_EXT_NONE;
    if (slot < kSlots && in_.below(4) != 0) shared.slots[slot].gen = gen;
    Socket* const s = slot < kSlots ? &sockets_[slot] : nullptr;
    const bool was_open = s != nullptr && s->open;
    const mw_status status = mw_slots_take(&slots_, slot, gen, s, &freed);
    give_back(freed);
    if (status != MW_OK) return;
    require(s != nullptr && !was_open && s->gen != gen);
    mw_slot& shared_slot = shared.slots[slot];
    shared_slot.rx_tail = shared_slot.rx_head = shared_slot.tx_tail = shared_slot.tx_head =
        MW_INDEX_START;
    s->open = true;
    s->gen = gen;
    mw_writer_init(&s->writer, &shared_slot.tx_tail, &shared_slot.tx_head, ext_of(slot, false),
                   MW_EXT_MIN_ORDER + in_.below(3));
    mw_consumer_init(&s->reader, &shared_slot.rx_tail, &shared_slot.rx_head);
    require(mw_slots_find(&slots_, slot, gen) == s);
  }
  void end(uint32_t slot) {
    Socket& s = sockets_[slot];
    const uint32_t ext = mw_writer_leave(&s.writer, &pool_);
    require(mw_slots_release(&slots_, slot, s.gen, ext) == MW_OK);
    s.open = false;
  }
  void close() {
    uint32_t slot;
    if (some(&slot) != nullptr) end(slot);
  }
  void reap() {
    uint32_t freed;
    mw_slots_reap(&slots_, in_.below(kSlots + 2), &freed);
    give_back(freed);
  }

  void send() {
    uint32_t slot, room = 0;
    Socket* const s = some(&slot);
    if (s == nullptr) return;
    const mw_status status = mw_writer_begin(&s->writer, &pool_, &tx_, &room);
    require(status != MW_BUG && (status == MW_OK) == (room != 0));
    if (status == MW_PEER) return end(slot);
    if (room == 0) {
      if (s->writer.ext != MW_EXT_NONE &&
          mw_producer_ask(&s->writer.ring, &shared.slots[slot].want) != MW_OK)
        end(slot);
      return;
    }
    require(room <= s->writer.ring.mem.size);
    uint32_t n = in_.below(4) == 0 ? room : in_.number<uint16_t>();
    n = std::min(n, room);
    mw_bytes_put(&s->writer.ring.mem, s->writer.ring.tail, source.data(), n);
    mw_writer_advance(&s->writer, n);
  }
  void rest() {
    uint32_t slot;
    if (Socket* const s = some(&slot); s != nullptr)
      mw_writer_rest(&s->writer, &pool_, in_.below(2) == 0);
  }

  // Looks for bytes. False: the socket is none, or is no more.
  bool look(uint32_t slot, Socket* s) {
    if (s == nullptr) return false;
    const uint32_t before = mw_consumer_ready(&s->reader);
    if (mw_area_look(&rx_, &s->reader, ext_of(slot, true)) == MW_OK) {
      require(mw_consumer_ready(&s->reader) >= before);
      return true;
    }
    end(slot);
    return false;
  }
  void receive() {
    uint32_t slot;
    Socket* const s = some(&slot);
    if (!look(slot, s)) return;
    const uint32_t n = std::min<uint32_t>(mw_consumer_ready(&s->reader), in_.number<uint16_t>());
    mw_consumer_get(&s->reader, sink.data(), n);
    mw_consumer_owes_news(&s->reader, &shared.slots[slot].want, s->reader.mem.size);
  }
  void datagram() {
    uint32_t slot;
    Socket* const s = some(&slot);
    if (!look(slot, s)) return;
    mw_dgram d;
    const mw_status status = mw_dgram_look(&s->reader, &d);
    if (status == MW_PEER) return end(slot);
    if (status != MW_OK) return;
    require(d.bytes <= mw_consumer_ready(&s->reader));
    require(uint64_t{sizeof d.head} + d.head.control_len + d.head.data_len <= d.bytes);
    require(d.head.name_len <= sizeof d.head.name && (d.head.flags & ~MW_DGRAM_FLAGS) == 0);
    mw_consumer_peek(&s->reader, sizeof d.head, sink.data(), d.head.control_len + d.head.data_len);
    mw_dgram_done(&s->reader, &d);
  }
  void record() {
    uint32_t slot;
    Socket* const s = some(&slot);
    if (!look(slot, s)) return;
    const mw_listener l{in_.below(2) == 0 ? MW_AF_INET : MW_AF_INET6, slot, s->gen, kSlots};
    mw_accept_record r;
    const mw_status status = mw_record_take(&s->reader, &l, &r);
    if (status == MW_PEER) return end(slot);
    if (status != MW_OK || (r.flags & MW_ACCEPT_ASK) != 0) return;
    require(r.slot < kSlots && r.slot != slot && r.gen != 0);
    const uint32_t len = l.family == MW_AF_INET ? MW_IN_BYTES : MW_IN6_BYTES;
    require(r.local.len == len && r.peer.len == len);
    accept(r.slot, r.gen);
  }

  void news() {
    const uint32_t member = in_.below(kBits);
    if (in_.below(2) == 0) mw_rset_add(&set_, member);
    if (in_.below(4) == 0) mw_rset_on_ring(&set_);
    const uint32_t steps = in_.below(200);
    uint32_t taken = 0;
    mw_rset_drain(
        &set_, &taken_, steps,
        [](void* n, uint32_t i) {
          require(i < kBits);
          ++*static_cast<uint32_t*>(n);
        },
        &taken);
    require(taken <= steps);
  }

  void call() {
    const uint32_t op = 1 + in_.below(18);
    const uint32_t cell = mw_calls_take(&calls_, op);
    if (cell == MW_NOTHING) return;
    if (in_.below(8) == 0) return mw_calls_give_back(&calls_, cell);
    mw_request r{};
    r.op = op;
    r.in = source.data();
    r.in_len = in_.below(MW_CALL_PAYLOAD + 2);
    r.most_out = in_.below(MW_CALL_PAYLOAD + 2);
    r.most_ret = static_cast<int32_t>(in_.below(100));
    const bool fits = r.in_len <= MW_CALL_PAYLOAD && r.most_out <= MW_CALL_PAYLOAD;
    require((mw_calls_post(&calls_, cell, &r, this) == MW_OK) == fits);
    if (!fits) mw_calls_give_back(&calls_, cell);
  }
  void answers() {
    const uint32_t cell = in_.below(kCells + 1);
    mw_status status;
    void* const waiter = mw_calls_on_news(&calls_, cell, &status);
    require(waiter == nullptr || waiter == this);
    if (cell == kCells) return;
    if (in_.below(6) == 0) return mw_calls_abandon(&calls_, cell);
    const mw_cell before = cells_[cell];
    std::vector<uint8_t> out(before.most_out);  // exactly: one byte more is a report
    mw_answer a;
    status = mw_calls_collect(&calls_, cell, &a, out.data());
    if (status == MW_OK) {
      require(a.out_len <= before.most_out && a.ret >= -1 && a.ret <= before.most_ret);
      require((a.ret == -1) == (a.err != 0));
    } else if (status == MW_PEER) {
      // The channel ends, and the next one begins with cells that nobody has used.
      mw_calls_init(&calls_, cells_.data(), shared.calls.data(), kCells);
      for (mw_call& c : shared.calls) std::memset(&c, 0, offsetof(mw_call, payload));
    }
  }

  void pool() {
    switch (in_.below(4)) {
      case 0:
        mw_pool_grow(&pool_);
        return;
      case 1:
        mw_pool_shrink(&pool_);
        return;
      case 2:
        if (const uint32_t ext = mw_pool_acquire(&pool_, in_.below(10)); ext != MW_EXT_NONE)
          held_.push_back(ext);
        return;
      default:
        if (held_.empty()) return;
        give_back(held_.back());
        held_.pop_back();
    }
  }
  void option() {
    constexpr int32_t kNames[] = {1, 35, 36, 38, 37, 42, 45, 43, 44, 41, 48};
    uint8_t value[160] = {};
    value[in_.below(2) * 8] = static_cast<uint8_t>(in_.below(2));
    const uint32_t len = in_.below(sizeof value + 1);
    const int32_t name = kNames[in_.below(std::size(kNames))];
    const bool room = mw_optlog_has_room(&log_, 0, name, value, len);
    require((mw_optlog_add(&log_, 0, name, value, len) == MW_OK) == room);
    mw_option o;
    const uint8_t* at_value = nullptr;
    uint32_t at = 0;
    while (mw_optlog_next(&log_, &at, &o, &at_value) == MW_OK)
      require(at_value + o.len <= log_bytes_ + log_.used);
    require(at == log_.used);
  }

  // What an INS does that keeps to the protocol.
  void honest() {
    uint32_t slot = in_.below(kSlots);
    mw_slot& s = shared.slots[slot];
    switch (in_.below(6)) {
      case 0:  // reads what was sent
        s.tx_head += std::min<uint32_t>(s.tx_tail - s.tx_head, in_.number<uint16_t>() * 8u);
        return;
      case 1:  // reads all
        s.tx_head = s.tx_tail;
        return;
      case 2: {  // puts bytes of the input into a ring
        uint8_t bytes[96];
        in_.take(std::as_writable_bytes(std::span(bytes)));
        return receive_there(slot, bytes, in_.below(sizeof bytes + 1), in_.below(900));
      }
      case 3:
        return in_.below(2) == 0 ? datagram_there(slot) : connection_there(slot);
      case 4:  // frees a slot
        s.gen = 0;
        return;
      default: {  // answers a call
        mw_call& c = shared.calls[in_.below(kCells)];
        c.ret = in_.below(2) == 0 ? 0 : -1;
        c.err = c.ret == 0 ? 0 : 22;
        c.out_len = 0;
        c.done_seq = c.seq;
      }
    }
  }

  // Puts `room` bytes into a ring, the first of them these.
  void receive_there(uint32_t slot, const void* from, uint32_t len, uint32_t room) {
    mw_slot& s = shared.slots[slot];
    constexpr uint32_t kOrder = MW_EXT_MIN_ORDER, kSize = MW_PAGE << kOrder;
    if (s.rx_tail == s.rx_head) *ext_of(slot, true) = mw_ext_of(slot << kOrder, kOrder);
    const uint32_t used = s.rx_tail - s.rx_head;
    const uint32_t n = std::max(len, room);
    if (used > kSize || kSize - used < n) return;
    uint8_t* const ring = &shared.rx[size_t{slot} * kSize];
    for (uint32_t i = 0; i < n; ++i)
      ring[(s.rx_tail + i) & (kSize - 1)] = i < len ? static_cast<const uint8_t*>(from)[i] : 0;
    s.rx_tail += n;
  }
  // A value of the input's choice, which is mostly this one.
  uint32_t mostly(uint32_t value) { return in_.below(8) == 1 ? in_.number<uint32_t>() : value; }
  void name_it(uint8_t* bytes, uint32_t len) {
    const auto family =
        static_cast<uint16_t>(mostly(len == MW_IN_BYTES ? MW_AF_INET : MW_AF_INET6));
    std::memcpy(bytes, &family, sizeof family);
  }
  void datagram_there(uint32_t slot) {
    mw_dgram_head h{};
    const uint32_t control = in_.below(64), data = in_.below(300);
    h.control_len = mostly(control);
    h.data_len = mostly(data);
    h.name_len = mostly(in_.below(2) == 0 ? MW_IN_BYTES : MW_IN6_BYTES);
    name_it(h.name, h.name_len);
    receive_there(slot, &h, sizeof h, static_cast<uint32_t>(mw_dgram_bytes(control, data)));
  }
  void connection_there(uint32_t slot) {
    mw_accept_record r{};
    r.magic = mostly(MW_ACCEPT_MAGIC);
    r.slot = mostly(in_.below(kSlots));
    r.gen = mostly(1 + in_.below(1000));
    r.flags = mostly(MW_ACCEPT_BARE);
    const uint32_t len = in_.below(2) == 0 ? MW_IN_BYTES : MW_IN6_BYTES;
    for (mw_addr* a : {&r.local, &r.peer}) {
      a->len = mostly(len);
      name_it(a->bytes, a->len);
    }
    if (r.slot < kSlots && in_.below(4) != 0) shared.slots[r.slot].gen = r.gen;
    receive_there(slot, &r, sizeof r, 0);
  }

  Input& in_;
  mw_area rx_{shared.rx.data(), kPages}, tx_{shared.tx.data(), kPages};
  std::vector<mw_unit> units_ = std::vector<mw_unit>(kPages / MW_UNIT_PAGES);
  mw_pool pool_;
  std::vector<uint32_t> held_;
  Socket sockets_[kSlots];
  std::vector<mw_slot_entry> entries_ = std::vector<mw_slot_entry>(kSlots);
  mw_slots slots_;
  std::vector<mw_cell> cells_ = std::vector<mw_cell>(kCells);
  mw_calls calls_;
  mw_rset set_;
  mw_rset_taken taken_{};
  alignas(4) uint8_t log_bytes_[256];
  mw_optlog log_;
};

}  // namespace
}  // namespace mw::fuzz

extern "C" {
uint64_t mw_hook_load(const void* word, uint32_t size, mw_order) {
  return mw::fuzz::seen(word, size);
}
void mw_hook_store(void* word, uint32_t size, uint64_t value, mw_order) {
  mw::fuzz::put(word, size, value);
}
uint64_t mw_hook_xchg(void* word, uint32_t size, uint64_t value) {
  const uint64_t before = mw::fuzz::seen(word, size);
  mw::fuzz::put(word, size, value);
  return before;
}
uint64_t mw_hook_fetch_or(void* word, uint32_t size, uint64_t bits) {
  const uint64_t before = mw::fuzz::seen(word, size);
  mw::fuzz::put(word, size, before | bits);
  return before;
}
uint64_t mw_hook_fetch_and(void* word, uint32_t size, uint64_t bits) {
  const uint64_t before = mw::fuzz::seen(word, size);
  mw::fuzz::put(word, size, before & bits);
  return before;
}
void mw_hook_fence() {}
void mw_hook_read(void* to, const void* from, size_t n) {
  mw::fuzz::require(mw::fuzz::shared.holds(from, n));
  std::memcpy(to, from, n);
}
void mw_hook_write(void* to, const void* from, size_t n) {
  mw::fuzz::require(mw::fuzz::shared.holds(to, n));
  std::memcpy(to, from, n);
}
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mw::fuzz::Input in(data, size);
  mw::fuzz::Module module(in);
  for (int steps = 0; !in.empty() && steps < 2000; ++steps) {
    module.step();
    module.check();
  }
  return 0;
}
