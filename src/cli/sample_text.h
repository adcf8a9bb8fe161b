// sample_text.h - samples as people and programs read them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "netflow/client.h"

namespace mw {

std::string process_of(const netflow::Sample& s);
const char* type_of(const netflow::Sample& s);
// As ss names it: ESTAB, LISTEN ...; "-" without one.
const char* tcp_state_of(const netflow::Sample& s);

// At most 6 characters: 999, 9.9k, 12M.
std::string short_number(uint64_t n);
// At most 6 characters: 0.4s, 99.9s, 12m, 3h; "-": it never happened.
std::string short_age(uint64_t milliseconds);

// Ages and times are seconds; null: it never happened.
nlohmann::ordered_json json_of(const netflow::Sample& s);
nlohmann::ordered_json json_of(const netflow::ProcessSample& s);
nlohmann::ordered_json json_of(const netflow::Round& r);

}  // namespace mw
