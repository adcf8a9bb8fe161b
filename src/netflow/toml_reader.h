// toml_reader.h - what readers of configuration files have in common: each says all that is wrong
// with a file, each fault with its place.
#pragma once

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "netflow/config.h"

#define TOML_EXCEPTIONS 0
#define TOML_HEADER_ONLY 1
#include <toml++/toml.h>

namespace mw::netflow {

class TomlReader {
 protected:
  // Nothing if the text is no TOML, which is then a fault.
  std::optional<toml::table> parse(const std::string& text) {
    auto parsed = toml::parse(text);
    if (parsed) return std::move(parsed).table();
    fault(parsed.error().source().begin, std::string(parsed.error().description()));
    return std::nullopt;
  }
  // In the order of the file.
  std::vector<ConfigFault> take_faults() {
    std::sort(faults_.begin(), faults_.end(), [](const ConfigFault& a, const ConfigFault& b) {
      return std::pair(a.line, a.column) < std::pair(b.line, b.column);
    });
    return std::move(faults_);
  }
  void fault(const toml::source_position& at, const std::string& text) {
    faults_.push_back({at.line, at.column, text});
  }
  void fault(const toml::node& node, const std::string& text) { fault(node.source().begin, text); }

  void only(const toml::table& t, const std::string& where,
            const std::vector<std::string_view>& known) {
    for (const auto& [key, node] : t) {
      if (std::find(known.begin(), known.end(), key.str()) != known.end()) continue;
      std::string list;
      for (const std::string_view name : known)
        list += (list.empty() ? "" : ", ") + std::string(name);
      fault(key.source().begin, where + std::string(key.str()) + " is unknown; there are: " + list);
    }
  }

  const toml::table* table(const toml::table& in, const char* name) {
    const toml::node* const node = in.get(name);
    if (node != nullptr && !node->is_table())
      fault(*node, std::string(name) + " has to be a table");
    return node != nullptr ? node->as_table() : nullptr;
  }
  // The value as it is to be; nothing if it is not there, or is something else.
  template <class T>
  std::optional<T> value(const toml::table& in, const char* name, const char* kind) {
    const toml::node* const node = in.get(name);
    if (node == nullptr) return std::nullopt;
    if (auto v = node->value_exact<T>()) return v;
    fault(*node, std::string(name) + " has to be " + kind);
    return std::nullopt;
  }
  void number(const toml::table& in, const char* name, uint64_t least, uint64_t most,
              const std::function<void(uint64_t)>& take) {
    const auto v = value<int64_t>(in, name, "a whole number");
    if (!v) return;
    if (*v >= 0 && static_cast<uint64_t>(*v) >= least && static_cast<uint64_t>(*v) <= most)
      take(static_cast<uint64_t>(*v));
    else
      fault(*in.get(name), std::string(name) + " has to be " + std::to_string(least) + " to " +
                               std::to_string(most));
  }
  void number(const toml::table& in, const char* name, uint32_t least, uint32_t most,
              uint32_t& out) {
    number(in, name, uint64_t{least}, uint64_t{most},
           [&out](uint64_t v) { out = static_cast<uint32_t>(v); });
  }

 private:
  std::vector<ConfigFault> faults_;
};

}  // namespace mw::netflow
