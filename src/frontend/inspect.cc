#include "frontend/inspect.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "base/unique_fd.h"

namespace mw {
namespace {

using Verdict = Inspection::Verdict;

constexpr int kMaxScripts = 5;         // the kernel's own limit on chained interpreters is 5
constexpr size_t kMaxSegments = 1024;  // far beyond any real program
constexpr size_t kMaxNotes = 1 << 16;
constexpr size_t kMaxFirstLine = 256;  // BINPRM_BUF_SIZE

Inspection refuse(const std::string& program, const std::string& why) {
  return {Verdict::refused, program, program + " " + why};
}

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
  Inspection result{Verdict::not_found, name, name + " was not found"};
  for (const std::string& candidate : candidates) {
    struct stat st {};
    if (::stat(candidate.c_str(), &st) < 0) continue;
    if (S_ISREG(st.st_mode) && ::access(candidate.c_str(), X_OK) == 0) {
      return {Verdict::coverable, candidate, ""};
    }
    result = {Verdict::not_executable, candidate, candidate + " is not an executable file"};
  }
  return result;
}

bool read_at(int fd, void* to, size_t size, uint64_t offset) {
  return ::pread(fd, to, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size);
}

// Would the kernel set AT_SECURE, so that the dynamic linker ignores LD_PRELOAD?
std::string secure_execution(const std::string& program, int fd) {
  struct stat st {};
  struct statvfs fs {};
  if (::fstat(fd, &st) < 0 || ::fstatvfs(fd, &fs) < 0) return "";
  const bool honoured = (fs.f_flag & ST_NOSUID) == 0;
  if (honoured && (st.st_mode & S_ISUID) != 0 && st.st_uid != ::getuid()) return "setuid";
  const bool setgid = (st.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP);
  if (honoured && setgid && st.st_gid != ::getgid()) return "setgid";
  if (::geteuid() != ::getuid() || ::getegid() != ::getgid()) return "started with changed ids";
  if (honoured && ::getuid() != 0 &&
      ::getxattr(program.c_str(), "security.capability", nullptr, 0) > 0) {
    return "equipped with file capabilities";
  }
  return "";
}

// A "Go" note marks what the Go linker made; its runtime enters the kernel without libc.
bool has_go_note(int fd, const Elf64_Phdr& segment) {
  if (segment.p_filesz > kMaxNotes) return false;
  std::vector<char> bytes(segment.p_filesz);
  if (!read_at(fd, bytes.data(), bytes.size(), segment.p_offset)) return false;
  size_t at = 0;
  while (at + sizeof(Elf64_Nhdr) <= bytes.size()) {
    Elf64_Nhdr note;
    ::memcpy(&note, bytes.data() + at, sizeof(note));
    const size_t name = at + sizeof(note);
    if (note.n_namesz >= 3 && name + 3 <= bytes.size() &&
        ::memcmp(bytes.data() + name, "Go", 3) == 0) {
      return true;
    }
    const uint64_t next = uint64_t{name} + ((uint64_t{note.n_namesz} + 3) & ~uint64_t{3}) +
                          ((uint64_t{note.n_descsz} + 3) & ~uint64_t{3});
    if (next > bytes.size()) return false;
    at = next;
  }
  return false;
}

Inspection inspect_elf(const std::string& program, int fd) {
  const std::string secure = secure_execution(program, fd);
  if (!secure.empty()) {
    return refuse(program,
                  "is " + secure +
                      ": the dynamic linker ignores preloaded libraries in such a program, so "
                      "its sockets would bypass the INS; run a copy without that bit as the "
                      "user that it should have");
  }
  Elf64_Ehdr header{};
  if (!read_at(fd, &header, sizeof(header), 0) || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_machine != EM_X86_64) {
    return refuse(program,
                  "is not a 64-bit x86 program, and libmwshim.so is: it cannot be loaded into it");
  }
  bool dynamic = false;
  bool go = false;
  std::string interpreter;
  const size_t segments = std::min<size_t>(header.e_phnum, kMaxSegments);
  for (size_t i = 0; i < segments; ++i) {
    Elf64_Phdr segment{};
    if (!read_at(fd, &segment, sizeof(segment), header.e_phoff + i * sizeof(segment))) break;
    if (segment.p_type == PT_INTERP) {
      char name[256] = {};
      const size_t length = std::min<size_t>(segment.p_filesz, sizeof(name) - 1);
      dynamic = read_at(fd, name, length, segment.p_offset);
      interpreter = name;
    } else if (segment.p_type == PT_NOTE) {
      go = go || has_go_note(fd, segment);
    }
  }
  if (!dynamic) {
    return refuse(
        program,
        "is statically linked: it enters the kernel without libc, so libmwshim.so never sees "
        "its sockets; use a dynamically linked build");
  }
  if (go) {
    return refuse(
        program,
        "is a Go program: its runtime makes system calls without libc, so libmwshim.so never "
        "sees its sockets");
  }
  if (interpreter.find("ld-linux") == std::string::npos) {
    return refuse(program, "is started by " + interpreter +
                               ", not by glibc's dynamic linker that libmwshim.so is made for");
  }
  return {Verdict::coverable, program, ""};
}

// The words of a "#!" line: the interpreter and at most one argument, as the kernel splits it.
std::vector<std::string> shebang(int fd) {
  char line[kMaxFirstLine + 1] = {};
  const ssize_t n = ::pread(fd, line, kMaxFirstLine, 0);
  if (n < 2 || line[0] != '#' || line[1] != '!') return {};
  std::string text(line + 2, ::strcspn(line + 2, "\n"));
  const auto trim = [](std::string s) {
    const size_t from = s.find_first_not_of(" \t\r");
    if (from == std::string::npos) return std::string();
    return s.substr(from, s.find_last_not_of(" \t\r") - from + 1);
  };
  text = trim(text);
  const size_t space = text.find_first_of(" \t");
  std::vector<std::string> words = {text.substr(0, space)};
  if (space != std::string::npos) words.push_back(trim(text.substr(space)));
  return words;
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

}  // namespace

Inspection inspect_command(const std::vector<std::string>& command) {
  std::vector<std::string> current = command;
  std::string first;
  for (int depth = 0; depth <= kMaxScripts; ++depth) {
    Inspection found = resolve(current[0]);
    if (first.empty()) first = found.program;
    if (found.verdict != Verdict::coverable) {
      if (depth > 0) found.reason = first + " needs " + found.reason;
      return found;
    }
    const UniqueFd fd{::open(found.program.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!fd) {
      return refuse(
          found.program,
          "cannot be read, so it is not known whether it can be covered: " + errno_text(errno));
    }
    char magic[SELFMAG] = {};
    const bool is_elf =
        read_at(fd.get(), magic, SELFMAG, 0) && ::memcmp(magic, ELFMAG, SELFMAG) == 0;
    if (is_elf) {
      Inspection result = inspect_elf(found.program, fd.get());
      if (result.verdict != Verdict::coverable) {
        if (depth > 0) result.reason = first + " runs " + result.reason;
        return result;
      }
      const std::string name = found.program.substr(found.program.rfind('/') + 1);
      if (name == "env") current = behind_env(current);
      if (name != "env" || current.empty()) return {Verdict::coverable, first, ""};
      continue;
    }
    std::vector<std::string> next = shebang(fd.get());
    if (next.empty() || next[0].empty()) next = {"/bin/sh"};  // as execvp(3) does for plain text
    current = next;
  }
  return refuse(first, "leads through too many interpreters");
}

}  // namespace mw
