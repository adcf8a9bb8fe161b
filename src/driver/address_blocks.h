// address_blocks.h - which peers the INS's own network namespace lets in: one nftables table there.
//
// The INS has no capability and is not asked: a keeper (keepers.h) enters its namespace and runs `nft`.
// Nothing of the host's own rules is touched; the table goes away with the namespace.
//
// INVARIANTS  One change is under way at a time, so they happen in the order in which they were asked
//             for.
// THREADS     One. Never waits.
#pragma once

#include <deque>
#include <functional>

#include "base/unique_fd.h"
#include "driver/keepers.h"
#include "netflow/wire.h"

namespace mw {

class AddressBlocks {
 public:
  // `err`: 0 once it is in force.
  using Done = std::function<void(uint32_t err)>;

  // `keeper`: its other end; -1: there is none, and no change is possible.
  explicit AddressBlocks(int keeper) : keeper_(keeper) {}
  AddressBlocks(const AddressBlocks&) = delete;
  AddressBlocks& operator=(const AddressBlocks&) = delete;

  // `netns` is duplicated.
  void change(int netns, const netflow::Address& address, bool block, Done done) {
    ask(netns, {block ? BlockOp::block : BlockOp::let_in, address}, std::move(done));
  }
  void clear(int netns, Done done) { ask(netns, {BlockOp::clear, {}}, std::move(done)); }
  // Call when the keeper's end is readable. False: it is gone, and there is nothing more to read.
  bool on_answer();

 private:
  static constexpr size_t kMaxQueued = 1024;
  struct Job {
    UniqueFd netns;
    BlockRequest request;
    Done done;
  };
  void ask(int netns, const BlockRequest& request, Done done);
  void start_next();
  Done take_first();

  int keeper_;
  std::deque<Job> jobs_;  // the first one is under way
};

}  // namespace mw
