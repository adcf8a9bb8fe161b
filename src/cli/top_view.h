// top_view.h - what `mw top` shows of a round: which sockets, in which order, as lines of a given
// width. No terminal is touched here.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/flow_filter.h"
#include "netflow/client.h"

namespace mw {

struct TopColumn {
  const char* key;  // for --sort
  const char* title;
  int width;  // negative: to the left
  std::string (*text)(const netflow::Sample&);
  // False: they are equal. The larger, or the later in the alphabet, comes first.
  bool (*before)(const netflow::Sample&, const netflow::Sample&);
};

class TopView {
 public:
  static const std::vector<TopColumn>& columns();
  // The column of this key; nothing: there is none.
  static std::optional<size_t> find_column(const std::string& key);

  void set_sort(size_t column) {
    sort_ = column;
    arrange();
  }
  size_t sort() const { return sort_; }
  void invert() {
    inverted_ = !inverted_;
    arrange();
  }
  // Filter words, or any text that a line has to contain; "" shows all.
  void set_filter(const std::string& text);
  const std::string& filter() const { return filter_text_; }
  void set_round(netflow::SampledRound round);
  bool has_round() const { return round_.round.round != 0; }
  const netflow::SampledRound& round() const { return round_; }

  // In order, without those that the filter leaves out.
  const std::vector<netflow::Sample>& rows() const { return rows_; }
  static std::string title(int width);
  static std::string line(const netflow::Sample& s, int width);
  // What concerns all of them: the stack, the sockets, the processes.
  std::vector<std::string> summary(const std::string& session, int width) const;

 private:
  void arrange();
  bool is_shown(const netflow::Sample& s) const;

  netflow::SampledRound round_;
  std::vector<netflow::Sample> rows_;
  std::optional<netflow::Round> before_;  // the last round
  uint64_t processes_us_ = 0;             // processor time of all of them, now and then
  uint64_t processes_us_before_ = 0;
  size_t sort_ = 0;
  bool inverted_ = false;
  std::string filter_text_;
  std::optional<FlowFilter> filter_;  // nothing: the text itself is looked for
};

}  // namespace mw
