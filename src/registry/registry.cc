#include "registry/registry.h"

#include <algorithm>
#include <charconv>

namespace mw {
namespace {

bool valid_component(std::string_view name) {
  if (name.empty() || name.size() > 64 || name.front() == '.') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

}  // namespace

bool valid_registry_path(std::string_view path) {
  for (;;) {
    const size_t slash = path.find('/');
    if (!valid_component(path.substr(0, slash))) return false;
    if (slash == std::string_view::npos) return true;
    path.remove_prefix(slash + 1);
  }
}

std::optional<uint64_t> parse_registry_number(std::string_view text) {
  uint64_t value = 0;
  if (text.empty() || (text.size() > 1 && text.front() == '0')) return std::nullopt;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Result<std::vector<uint32_t>> list_ins(Registry& registry) {
  auto names = registry.list("mw");
  if (!names) return names.error();
  std::vector<uint32_t> ids;
  for (const std::string& name : *names) {
    const auto id = parse_registry_number(name);
    if (id && *id <= UINT32_MAX) ids.push_back(static_cast<uint32_t>(*id));
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

std::string ins_path(uint32_t id, std::string_view name) {
  std::string path = "mw/" + std::to_string(id);
  if (!name.empty()) path.append("/").append(name);
  return path;
}

}  // namespace mw
