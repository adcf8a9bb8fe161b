#include "shim/process/regions.h"

namespace mw::shim {
namespace {

// Opens a table and maps its first piece.
Status open_table(Pieces& table, const SealedFile& file, uint64_t from, uint64_t end,
                  uint64_t stride) {
  if (auto opened = table.open(file, from, end - from, stride); !opened) return opened.error();
  if (table.get(0) == nullptr) return Error{Fault::sys, ENOMEM, "mmap of a region"};
  return Ok{};
}
Status open_table(Pieces& table, const SealedFile& file, uint64_t from, uint64_t end) {
  return open_table(table, file, from, end, end - from);
}

}  // namespace

Status ChannelView::open(const SealedFile& file, const mw_geometry& geometry, uint32_t first) {
  g_ = geometry;
  if (mw_layout_of(&g_, &l_) != 0) return Error{Fault::peer, 0, "channel geometry"};
  if (l_.bytes > file.bytes) return Error{Fault::limit, 0, "channel memory too small"};
  file_ = file;
  Status s = open_table(first_, file_, 0, l_.group_news);
  if (s) s = open_table(second_, file_, l_.calls, l_.slots);
  if (s)
    s = open_table(groups_, file_, l_.group_news, l_.calls, l_.group_news_stride * kGroupsAPiece);
  if (s)
    s = open_table(slots_, file_, l_.slots, l_.slots + sizeof(mw_slot) * g_.slots,
                   sizeof(mw_slot) * kSlotsAPiece);
  if (s) s = rings_.open(file_, l_, g_.slots, first);
  if (!s) {
    close();
    return s.error();
  }
  head_ = first_.find(0);
  calls_ = second_.find(0);
  return Ok{};
}

void ChannelView::close() {
  first_.close();
  second_.close();
  groups_.close();
  slots_.close();
  rings_.close();
}

void ChannelView::map_all() {
  (void)groups_.map_all();
  (void)slots_.map_all();
  (void)rings_.map_all();
}

Status SessionView::open(const SealedFile& file, const mw_geometry& geometry) {
  l_ = session_layout_of(geometry);
  count_ = geometry.slots;
  if (l_.bytes > file.bytes) return Error{Fault::limit, 0, "session memory too small"};
  file_ = file;
  Status s = open_table(first_, file_, 0, l_.slots);
  if (s) s = open_table(slots_, file_, l_.slots, l_.owners, sizeof(SessionSlot) * kSlotsAPiece);
  if (s) s = open_table(second_, file_, l_.owners, l_.far_watches);
  if (s)
    s = far_.open(file_, l_.far_watches, sizeof(SessionFarWatches) * uint64_t{count_},
                  sizeof(SessionFarWatches) * kSlotsAPiece / 4);
  if (!s) {
    close();
    return s.error();
  }
  head_ = first_.find(0);
  owners_ = second_.find(0);
  return Ok{};
}

void SessionView::close() {
  first_.close();
  second_.close();
  slots_.close();
  far_.close();
}

void SessionView::map_all() {
  (void)slots_.map_all();
  (void)far_.map_all();
}

SessionWatches SessionView::watches(uint32_t i) {
  constexpr uint32_t kAPiece = kSlotsAPiece / 4;
  SessionSlot& s = slot(i);
  SessionFarWatches* far = nullptr;
  if (StdAtomics::load_relaxed(s.watch_end) >= kNearWatches) [[unlikely]]
    if (std::byte* const piece = far_.get(i / kAPiece); piece != nullptr)
      far = reinterpret_cast<SessionFarWatches*>(piece) + i % kAPiece;
  return {s, far};
}

}  // namespace mw::shim
