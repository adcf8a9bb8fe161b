#include "frontend/inspect.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>

#include "coverage/coverage.h"

namespace mw {
namespace {

using Verdict = Inspection::Verdict;

constexpr int kMaxPrograms = 6;  // that start one another: env, the dynamic linker

// As execvp(3) searches: the first entry of PATH that may be executed wins.
Inspection resolve(const std::string& name) {
  std::vector<std::string> candidates;
  if (name.find('/') != std::string::npos) {
    candidates.push_back(name);
  } else {
    const char* path = std::getenv("PATH");
    std::istringstream folders(path != nullptr ? path : "/bin:/usr/bin");
    for (std::string folder; std::getline(folders, folder, ':');) {
      candidates.push_back((folder.empty() ? "." : folder) + "/" + name);
    }
  }
  Inspection result{Verdict::not_found, name, name + " was not found", ""};
  for (const std::string& candidate : candidates) {
    struct stat st {};
    if (::stat(candidate.c_str(), &st) < 0) continue;
    if (S_ISREG(st.st_mode) && ::access(candidate.c_str(), X_OK) == 0) {
      return {Verdict::coverable, candidate, "", ""};
    }
    result = {Verdict::not_executable, candidate, candidate + " is not an executable file", ""};
  }
  return result;
}

// What env(1) would run: its first operand that is not an assignment. Nothing, if it has options
// whose arguments we would have to know.
std::vector<std::string> behind_env(const std::vector<std::string>& command) {
  for (size_t i = 1; i < command.size(); ++i) {
    std::istringstream words(command[i]);  // "-S python3 -u" comes as one word from a #! line
    for (std::string word; words >> word;) {
      if (word == "-S" || word == "-i") continue;
      if (word[0] == '-') return {};
      if (word.find('=') == std::string::npos) return {word};
    }
  }
  return {};
}

// What glibc's dynamic linker would run.
std::vector<std::string> behind_linker(const std::vector<std::string>& command) {
  std::vector<const char*> words;
  for (const std::string& word : command) words.push_back(word.c_str());
  words.push_back(nullptr);
  const char* program = behind_loader(words.data());
  return program == nullptr ? std::vector<std::string>{} : std::vector<std::string>{program};
}

// A plain text is a script of /bin/sh, as execvp(3) has it.
Judgement judge_command(const std::string& program, const JudgeOptions& options) {
  const Judgement j = judge({AT_FDCWD, program.c_str(), 0}, options);
  return j.coverage == Coverage::no_format && !j.is_elf ? judge_shell() : j;
}

Verdict verdict_of(const Judgement& j) {
  switch (j.coverage) {
    case Coverage::covered:
      return Verdict::coverable;
    case Coverage::missing:
      return Verdict::not_found;
    case Coverage::not_executable:
      return Verdict::not_executable;
    default:
      return Verdict::refused;
  }
}

std::string sentence_of(const Judgement& j, const std::string& program) {
  char text[1024];
  describe(j, program.c_str(), text, sizeof text);
  return text;
}

Inspection outcome_of(const Judgement& j, const std::string& program,
                      const std::string& uncovered) {
  Inspection result{verdict_of(j), program, "", ""};
  if (result.verdict == Verdict::coverable) return result;
  result.reason = sentence_of(j, program);
  if (!is_out_of_reach(j.coverage)) return result;
  const std::string name = name_of(j, program.c_str());
  result.to_allow = name.substr(name.rfind('/') + 1);
  make_printable(result.to_allow.data());
  if (is_allowed(uncovered.c_str(), j, program.c_str())) result.verdict = Verdict::allowed;
  return result;
}

}  // namespace

Inspection inspect_command(const std::vector<std::string>& command, const std::string& uncovered) {
  std::vector<std::string> current = command;
  std::string first;
  JudgeOptions options;
  for (int depth = 0; depth < kMaxPrograms; ++depth) {
    Inspection found = resolve(current[0]);
    if (first.empty()) first = found.program;
    if (found.verdict != Verdict::coverable) {
      if (depth > 0) found.reason = first + " needs " + found.reason;
      return found;
    }
    const Judgement j = judge_command(found.program, options);
    if (j.coverage != Coverage::covered) {
      Inspection result = outcome_of(j, found.program, uncovered);
      if (depth > 0) result.reason = first + " runs " + result.reason;
      return result;
    }
    const std::string name = name_of(j, found.program.c_str());
    std::vector<std::string> next = current;
    if (j.interpreter[0] != 0) next = {name, j.argument};
    if (j.is_loader)
      next = behind_linker(next);
    else if (name.substr(name.rfind('/') + 1) == "env")
      next = behind_env(next);
    else
      next.clear();
    if (next.empty()) return {Verdict::coverable, first, "", ""};
    options.is_mapped_by_loader = j.is_loader;
    current = next;
  }
  return {Verdict::refused, first, first + " leads through too many interpreters", ""};
}

}  // namespace mw
