// address_blocks.h - which peers the INS's own network namespace lets in: one nftables table there.
//
// The INS has no capability and is not asked: a child process enters its namespace and runs `nft`.
// Nothing of the host's own rules is touched; the table goes away with the namespace.
//
// INVARIANTS  One nft runs at a time, so changes happen in the order in which they were asked for.
// THREADS     One. Never waits.
#pragma once

#include <sys/types.h>

#include <deque>
#include <functional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "netflow/wire.h"

namespace mw {

// The transaction that makes the table if need be and lets the address in or not.
std::string block_ruleset(const netflow::Address& address, bool block);
// The one that makes it if need be and lets everybody in.
std::string clear_ruleset();

class AddressBlocks {
 public:
  // `err`: 0 once it is in force.
  using Done = std::function<void(uint32_t err)>;

  AddressBlocks() = default;
  ~AddressBlocks();
  AddressBlocks(const AddressBlocks&) = delete;
  AddressBlocks& operator=(const AddressBlocks&) = delete;

  // `netns` is duplicated.
  void change(int netns, const netflow::Address& address, bool block, Done done);
  void clear(int netns, Done done) { run(netns, clear_ruleset(), std::move(done)); }
  // The running nft's pidfd, readable at its end; -1 if none runs.
  int running() const { return child_.get(); }
  void on_end();

 private:
  static constexpr size_t kMaxQueued = 1024;
  struct Job {
    UniqueFd netns;
    std::string rules;
    Done done;
  };
  void run(int netns, std::string rules, Done done);
  void start_next();
  uint32_t start(const Job& job);

  std::deque<Job> jobs_;  // the first one runs
  UniqueFd child_;
};

}  // namespace mw
