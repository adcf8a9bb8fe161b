#include "coverage/coverage.h"

#include <elf.h>
#include <errno.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include <algorithm>

#include "base/hex.h"
#include "base/raw_syscall.h"

namespace mw {
namespace {

constexpr int kMaxInterpreters = 5;  // the kernel gives ELOOP beyond
constexpr size_t kMaxSegmentBytes =
    65536;                        // of all program headers; the kernel gives ENOEXEC beyond
constexpr size_t kMaxNotes = 64;  // in one segment
constexpr uint64_t kMaxSectionNames = 16384;
constexpr const char kGlibcLoader[] = "/lib64/ld-linux-x86-64.so.2";

// A number of /proc/self/fd, without the C library.
struct FdPath {
  char text[32];
  explicit FdPath(int fd) {
    char digits[12];
    size_t n = 0;
    for (auto left = static_cast<unsigned>(fd); n == 0 || left != 0; left /= 10)
      digits[n++] = static_cast<char>('0' + left % 10);
    char* to = ::stpcpy(text, "/proc/self/fd/");
    while (n != 0) *to++ = digits[--n];
    *to = 0;
  }
};

int open_at(int folder, const char* path, int flags) {
  return static_cast<int>(raw_syscall(SYS_openat, folder, path, flags | O_CLOEXEC, 0));
}

// The file that is looked at: a descriptor of ours, or the caller's own.
class File {
 public:
  File() = default;
  ~File() { close(); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // 0 or errno. Requires: the target is a regular file, or was one a moment ago.
  int open(const ExecTarget& t) {
    const bool is_descriptor = (t.flags & AT_EMPTY_PATH) != 0 && *t.path == 0;
    // A FIFO that has taken the file's place must not stop us.
    const int how = O_RDONLY | O_NONBLOCK | O_NOCTTY;
    if (is_descriptor) {
      fd_ = t.folder;
      is_ours_ = false;
      char byte = 0;
      // One of O_PATH, or for writing only.
      if (raw_syscall(SYS_pread64, fd_, &byte, 1, 0L) >= 0) return 0;
      fd_ = open_at(AT_FDCWD, FdPath(t.folder).text, how);
    } else {
      const int links = (t.flags & AT_SYMLINK_NOFOLLOW) != 0 ? O_NOFOLLOW : 0;
      fd_ = open_at(t.folder, t.path, how | links);
      // Another process has a lease on it, and has to give it up first.
      if (fd_ < 0 && errno == EWOULDBLOCK)
        fd_ = open_at(t.folder, t.path, O_RDONLY | O_NOCTTY | links);
    }
    is_ours_ = true;
    return fd_ < 0 ? errno : 0;
  }
  void close() {
    if (is_ours_ && fd_ >= 0) raw_syscall(SYS_close, fd_);
    fd_ = -1;
  }
  int fd() const { return fd_; }

  // The first bytes of it, from which most reads are served.
  void read_head() {
    const long n = raw_syscall(SYS_pread64, fd_, head_, sizeof head_, 0L);
    have_ = n > 0 ? static_cast<size_t>(n) : 0;
  }
  const char* head() const { return head_; }
  size_t head_bytes() const { return have_; }

  // False: the file has no such bytes.
  bool read(uint64_t offset, void* to, size_t n) const {
    if (offset <= have_ && n <= have_ - offset) {
      memcpy(to, head_ + offset, n);
      return true;
    }
    if (offset > INT64_MAX) return false;
    return raw_syscall(SYS_pread64, fd_, to, n, static_cast<long>(offset)) == static_cast<long>(n);
  }

 private:
  int fd_ = -1;
  bool is_ours_ = false;
  size_t have_ = 0;
  char head_[1024];
};

int status_of(const ExecTarget& t, struct stat& st) {
  const int flags = t.flags & (AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW);
  return raw_syscall(SYS_newfstatat, t.folder, t.path, &st, flags) < 0 ? errno : 0;
}

bool is_same_file(const char* path, const struct stat& st) {
  struct stat other {};
  return status_of({AT_FDCWD, path, 0}, other) == 0 && other.st_dev == st.st_dev &&
         other.st_ino == st.st_ino;
}

const char* last_part(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

bool starts_with(const char* text, const char* beginning) {
  return strncmp(text, beginning, strlen(beginning)) == 0;
}

// ---- would the kernel set AT_SECURE, so that the dynamic linker ignores LD_PRELOAD? ----

struct Ids {
  unsigned real = 0, effective = 0, saved = 0;
};

// With a file system of "nosuid", mode bits and capabilities give nothing.
bool gives_privileges(int fd) {
  struct statfs fs {};
  return raw_syscall(SYS_fstatfs, fd, &fs) < 0 || (fs.f_flags & ST_NOSUID) == 0;
}

// security.capability: the kernel sets AT_SECURE if the file asks for capabilities to be effective,
// or if the process gets any that are not ambient; with such a file none is.
bool adds_capabilities(int fd) {
  struct {
    uint32_t magic;
    struct {
      uint32_t permitted, inheritable;
    } data[VFS_CAP_U32];
    uint32_t root;
  } file{};
  const long n = raw_syscall(SYS_fgetxattr, fd, "security.capability", &file, sizeof file);
  if (n < static_cast<long>(sizeof file.magic) || !gives_privileges(fd)) return false;
  if ((file.magic & VFS_CAP_FLAGS_EFFECTIVE) != 0) return true;
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct own[_LINUX_CAPABILITY_U32S_3] = {};
  if (raw_syscall(SYS_capget, &header, own) < 0) return true;
  for (int i = 0; i < VFS_CAP_U32; ++i)
    if (file.data[i].permitted != 0 || (file.data[i].inheritable & own[i].inheritable) != 0)
      return true;
  return false;
}

// `fd`: -1 if the file cannot be opened, not even to look at its file system.
Coverage secure_execution(const struct stat& st, int fd, const JudgeOptions& options) {
  if (options.is_confined) return Coverage::covered;
  Ids user, group;
  raw_syscall(SYS_getresuid, &user.real, &user.effective, &user.saved);
  raw_syscall(SYS_getresgid, &group.real, &group.effective, &group.saved);
  const unsigned uid = options.resets_ids ? user.real : user.effective;
  const unsigned gid = options.resets_ids ? group.real : group.effective;
  // Without the right of its group to execute it, the bit means something else.
  const bool sets_gid = (st.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP);
  const bool sets_uid = (st.st_mode & S_ISUID) != 0;
  if ((sets_uid || sets_gid) && !options.is_mapped_by_loader &&
      raw_syscall(SYS_prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1 && gives_privileges(fd)) {
    // Newer kernels also ask whether the effective ids change, be it back to the real ones.
    if (sets_uid && (st.st_uid != user.real || st.st_uid != uid)) return Coverage::set_user_id;
    if (sets_gid && (st.st_gid != group.real || st.st_gid != gid)) return Coverage::set_group_id;
  }
  if (uid != user.real || gid != group.real) return Coverage::changed_ids;
  if (user.real != 0 && !options.is_mapped_by_loader && fd >= 0 && adds_capabilities(fd))
    return Coverage::file_capabilities;
  return Coverage::covered;
}

// ---- ELF ----

// A "Go" note marks what the Go linker made; its runtime enters the kernel without libc.
bool has_go_note(const File& file, const Elf64_Phdr& segment) {
  uint64_t at = 0;
  for (size_t n = 0; n < kMaxNotes; ++n) {
    Elf64_Nhdr note{};
    if (at > segment.p_filesz || segment.p_filesz - at < sizeof note) return false;
    if (!file.read(segment.p_offset + at, &note, sizeof note)) return false;
    at += sizeof note;
    char name[4] = {};
    if (note.n_namesz >= 3 && at + 3 <= segment.p_filesz &&
        file.read(segment.p_offset + at, name, 3) && strcmp(name, "Go") == 0)
      return true;
    constexpr uint64_t kAlign = 3;
    at += ((uint64_t{note.n_namesz} + kAlign) & ~kAlign) +
          ((uint64_t{note.n_descsz} + kAlign) & ~kAlign);
  }
  return false;
}

// Go programs that were built without that note still have its tables, and keep the names of them
// when they are stripped.
bool has_go_section(const File& file, const Elf64_Ehdr& header) {
  if (header.e_shstrndx == SHN_UNDEF || header.e_shentsize != sizeof(Elf64_Shdr)) return false;
  Elf64_Shdr names{};
  const uint64_t where = uint64_t{header.e_shstrndx} * sizeof names;
  if (header.e_shoff > INT64_MAX || !file.read(header.e_shoff + where, &names, sizeof names))
    return false;
  constexpr const char kTable[] = ".gopclntab";
  constexpr const char kBuild[] = ".go.buildinfo";
  constexpr size_t kOverlap = sizeof kBuild - 1;  // a name may stand across two pieces
  const uint64_t size = std::min<uint64_t>(names.sh_size, kMaxSectionNames);
  char text[1024];
  for (uint64_t at = 0; at < size; at += sizeof text - kOverlap) {
    const size_t n = std::min<uint64_t>(size - at, sizeof text);
    if (names.sh_offset > INT64_MAX || !file.read(names.sh_offset + at, text, n)) return false;
    if (memmem(text, n, kTable, sizeof kTable) != nullptr ||
        memmem(text, n, kBuild, sizeof kBuild) != nullptr)
      return true;
  }
  return false;
}

// By its name, or the same file under another one.
bool is_glibc_loader(const char* name) {
  if (starts_with(last_part(name), "ld-linux")) return true;
  struct stat st {};
  return status_of({AT_FDCWD, kGlibcLoader, 0}, st) == 0 && is_same_file(name, st);
}

void judge_elf(const File& file, const struct stat& st, const char* name, Judgement& j) {
  j.is_elf = true;
  Elf64_Ehdr header{};
  const size_t n = std::min(file.head_bytes(), sizeof header);
  memcpy(&header, file.head(), n);
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != EM_X86_64) {
    j.coverage = Coverage::other_machine;
    return;
  }
  // The kernel refuses all that, and it refuses headers behind the file's end.
  const uint64_t bytes = uint64_t{header.e_phnum} * sizeof(Elf64_Phdr);
  j.coverage = Coverage::no_format;
  if (header.e_phentsize != sizeof(Elf64_Phdr) || bytes == 0 || bytes > kMaxSegmentBytes ||
      header.e_phoff > INT64_MAX)
    return;
  bool has_loader = false;
  bool is_go = false;
  for (uint64_t at = 0; at < bytes; at += sizeof(Elf64_Phdr)) {
    Elf64_Phdr segment{};
    if (!file.read(header.e_phoff + at, &segment, sizeof segment)) return;
    if (segment.p_type == PT_NOTE) is_go = is_go || has_go_note(file, segment);
    if (segment.p_type != PT_INTERP || has_loader) continue;
    if (segment.p_filesz == 0 || segment.p_filesz > PATH_MAX) return;
    const size_t length = std::min<size_t>(segment.p_filesz, sizeof j.loader - 1);
    if (!file.read(segment.p_offset, j.loader, length)) return;
    j.loader[length] = 0;
    has_loader = true;
  }
  if (!has_loader && header.e_type == ET_DYN &&
      (starts_with(last_part(name), "ld-linux-x86-64.so.") || is_same_file(kGlibcLoader, st))) {
    j.is_loader = true;
    j.coverage = Coverage::covered;
  } else if (is_go || has_go_section(file, header)) {
    j.coverage = Coverage::go_program;
  } else if (!has_loader) {
    j.coverage = Coverage::static_program;
  } else {
    j.coverage = is_glibc_loader(j.loader) ? Coverage::covered : Coverage::other_loader;
  }
}

// ---- interpreters ----

// The words of a "#!" line: the interpreter and at most one argument, as the kernel splits it.
// False: the kernel refuses the line.
bool parse_script(const File& file, Judgement& j) {
  const size_t n = std::min(file.head_bytes(), kInterpreterBytes);
  const char* at = file.head() + 2;
  const char* const limit = file.head() + n;
  const char* end = static_cast<const char*>(memchr(at, '\n', static_cast<size_t>(limit - at)));
  if (end == nullptr) end = limit;
  const auto is_blank = [](char c) { return c == ' ' || c == '\t'; };
  while (at < end && is_blank(*at)) ++at;
  while (end > at && is_blank(end[-1])) --end;
  const char* word = at;
  while (at < end && !is_blank(*at) && *at != 0) ++at;
  const auto copy = [](char* to, const char* from, const char* behind) {
    const auto size = std::min<size_t>(static_cast<size_t>(behind - from), kInterpreterBytes - 1);
    memcpy(to, from, size);
    to[size] = 0;
  };
  copy(j.interpreter, word, at);
  while (at < end && is_blank(*at)) ++at;
  copy(j.argument, at, end);
  return j.interpreter[0] != 0;
}

// One registration of binfmt_misc, as its file shows it.
struct Handler {
  const char* interpreter = nullptr;
  const char* extension = nullptr;
  const char* magic = nullptr;
  const char* mask = nullptr;
  size_t offset = 0;
  bool is_enabled = false;
};

// Ends each line of `text`, and points into it.
Handler parse_handler(char* text) {
  Handler h;
  for (char* line = text; line != nullptr && *line != 0;) {
    char* const end = strchr(line, '\n');
    if (end != nullptr) *end = 0;
    const auto value = [line](const char* name) {
      return starts_with(line, name) ? line + strlen(name) : nullptr;
    };
    if (strcmp(line, "enabled") == 0) h.is_enabled = true;
    if (const char* v = value("interpreter ")) h.interpreter = v;
    if (const char* v = value("extension .")) h.extension = v;
    if (const char* v = value("magic ")) h.magic = v;
    if (const char* v = value("mask ")) h.mask = v;
    if (const char* v = value("offset "))
      for (; *v >= '0' && *v <= '9' && h.offset < 1024; ++v)
        h.offset = h.offset * 10 + static_cast<size_t>(*v - '0');
    line = end == nullptr ? nullptr : end + 1;
  }
  return h;
}

bool is_for(const Handler& h, const File& file, const char* name) {
  if (!h.is_enabled || h.interpreter == nullptr) return false;
  if (h.extension != nullptr) {
    const char* dot = strrchr(name, '.');
    return dot != nullptr && strcmp(dot + 1, h.extension) == 0;
  }
  if (h.magic == nullptr) return false;
  size_t at = h.offset;
  for (size_t i = 0; h.magic[i] != 0 && h.magic[i + 1] != 0; i += 2, ++at) {
    const auto byte_of = [i](const char* hex) {
      return hex_value(hex[i]) << 4 | hex_value(hex[i + 1]);
    };
    const bool is_masked = h.mask != nullptr && strlen(h.mask) >= i + 2;
    const int mask = is_masked ? byte_of(h.mask) : 0xff;
    if (at >= file.head_bytes()) return false;
    if (((static_cast<unsigned char>(file.head()[at]) ^ byte_of(h.magic)) & mask) != 0)
      return false;
  }
  return true;
}

// The folder, if it is mounted: to open what only may be mounted would mount it.
int open_handlers() {
  const int place = open_at(AT_FDCWD, "/proc/sys/fs/binfmt_misc", O_PATH);
  if (place < 0) return -1;
  struct statfs fs {};
  int folder = -1;
  if (raw_syscall(SYS_fstatfs, place, &fs) == 0 && fs.f_type == BINFMTFS_MAGIC)
    folder = open_at(place, ".", O_RDONLY | O_DIRECTORY);
  raw_syscall(SYS_close, place);
  return folder;
}

size_t read_small(int folder, const char* name, char* to, size_t size) {
  const int fd = open_at(folder, name, O_RDONLY);
  if (fd < 0) return 0;
  const long n = raw_syscall(SYS_pread64, fd, to, size - 1, 0L);
  raw_syscall(SYS_close, fd);
  to[n > 0 ? n : 0] = 0;
  return n > 0 ? static_cast<size_t>(n) : 0;
}

bool copy_interpreter(const Handler& h, Judgement& j) {
  const size_t n = strlen(h.interpreter);
  if (n >= sizeof j.interpreter) return false;
  memcpy(j.interpreter, h.interpreter, n + 1);
  j.argument[0] = 0;
  return true;
}

// What binfmt_misc would start for the file. False: nothing.
bool find_handler(const File& file, const char* name, Judgement& j) {
  const int folder = open_handlers();
  if (folder < 0) return false;
  char text[1024];
  bool found = false;
  if (read_small(folder, "status", text, sizeof text) != 0 && starts_with(text, "enabled")) {
    struct Entry {
      uint64_t inode;
      int64_t next;
      uint16_t length;
      uint8_t type;
      char name[];
    };
    alignas(Entry) char list[1024];
    long n = 0;
    while (!found && (n = raw_syscall(SYS_getdents64, folder, list, sizeof list)) > 0) {
      for (long at = 0; !found && at < n;) {
        const auto* const entry = reinterpret_cast<const Entry*>(list + at);
        at += entry->length;
        const char* const own = entry->name;
        if (own[0] == '.' || strcmp(own, "status") == 0 || strcmp(own, "register") == 0) continue;
        if (read_small(folder, own, text, sizeof text) == 0) continue;
        const Handler h = parse_handler(text);
        found = is_for(h, file, name) && copy_interpreter(h, j);
      }
    }
  }
  raw_syscall(SYS_close, folder);
  return found;
}

// ---- one file after the other ----

void note_name(const ExecTarget& t, int fd, Judgement& j) {
  const int named = fd >= 0 ? fd : (t.flags & AT_EMPTY_PATH) != 0 && *t.path == 0 ? t.folder : -1;
  if (named < 0) return;
  const long n =
      raw_syscall(SYS_readlinkat, AT_FDCWD, FdPath(named).text, j.file, sizeof j.file - 1);
  j.file[n > 0 ? n : 0] = 0;
  constexpr const char kDeleted[] = " (deleted)";
  constexpr long kLength = sizeof kDeleted - 1;
  if (n > kLength && strcmp(j.file + n - kLength, kDeleted) == 0) j.file[n - kLength] = 0;
}

// True if the kernel would give EACCES. (The real ids are asked; where they are not the effective
// ones nothing is covered.)
bool is_forbidden(const ExecTarget& t, const JudgeOptions& options) {
  if (options.is_confined || (t.flags & AT_EMPTY_PATH) != 0) return false;
  return raw_syscall(SYS_faccessat, t.folder, t.path, X_OK) < 0 && errno == EACCES;
}

// Judges one file. True: it names another one, in j.interpreter.
bool judge_file(const ExecTarget& t, const JudgeOptions& options, Judgement& j) {
  struct stat st {};
  j.error = status_of(t, st);
  if (j.error != 0) {
    j.coverage = Coverage::missing;
    return false;
  }
  j.device = st.st_dev;
  j.inode = st.st_ino;
  constexpr mode_t kAnyX = S_IXUSR | S_IXGRP | S_IXOTH;
  const bool may_be_executed = options.is_mapped_by_loader || (st.st_mode & kAnyX) != 0;
  if (!S_ISREG(st.st_mode) || !may_be_executed) {
    j.coverage = Coverage::not_executable;
    return false;
  }
  File file;
  int fd = -1;
  j.error = file.open(t);
  if (j.error == 0) {
    fd = file.fd();
    file.read_head();
    if (file.head_bytes() >= 2 && memcmp(file.head(), "#!", 2) == 0) {
      if (parse_script(file, j)) return true;
      j.coverage = Coverage::no_format;
      return false;
    }
    const bool has_magic =
        file.head_bytes() >= SELFMAG && memcmp(file.head(), ELFMAG, SELFMAG) == 0;
    j.coverage = Coverage::no_format;
    if (has_magic) judge_elf(file, st, t.path, j);
    if (j.coverage == Coverage::no_format) return find_handler(file, t.path, j);
    if (const Coverage secure = secure_execution(st, fd, options); is_out_of_reach(secure))
      j.coverage = secure;
  } else {
    // Who may execute it but not read it can still look at where it lies.
    const int place = open_at(t.folder, t.path, O_PATH);
    const Coverage secure = secure_execution(st, place, options);
    j.coverage = secure == Coverage::covered ? Coverage::unreadable : secure;
    if (place >= 0) raw_syscall(SYS_close, place);
  }
  if (!is_out_of_reach(j.coverage)) return false;
  if (!options.is_mapped_by_loader && is_forbidden(t, options))
    j.coverage = Coverage::not_executable;
  note_name(t, fd, j);
  return false;
}

}  // namespace

Judgement judge(const ExecTarget& target, const JudgeOptions& options) {
  const int saved = errno;
  Judgement j;
  ExecTarget now = target;
  char path[kInterpreterBytes];
  for (int depth = 0; judge_file(now, options, j); ++depth) {
    if (depth == kMaxInterpreters) {
      j.coverage = Coverage::too_many_interpreters;
      break;
    }
    memcpy(path, j.interpreter, sizeof path);
    now = {AT_FDCWD, path, 0};
  }
  errno = saved;
  return j;
}

Judgement judge_shell() {
  constexpr const char kShell[] = "/bin/sh";
  Judgement j = judge({AT_FDCWD, kShell, 0});
  if (j.interpreter[0] == 0) memcpy(j.interpreter, kShell, sizeof kShell);
  return j;
}

const char* behind_loader(const char* const* argv) {
  constexpr const char* kWithWord[] = {
      "--library-path",         "--inhibit-rpath",    "--audit", "--preload", "--argv0",
      "--glibc-hwcaps-prepend", "--glibc-hwcaps-mask"};
  if (argv == nullptr || argv[0] == nullptr) return nullptr;
  for (const char* const* word = argv + 1; *word != nullptr; ++word) {
    if (!starts_with(*word, "--")) return *word;
    if (strcmp(*word, "--inhibit-cache") == 0) continue;
    bool has_word = false;
    for (const char* option : kWithWord) has_word = has_word || strcmp(*word, option) == 0;
    if (!has_word) return nullptr;  // --list, --verify and what else starts nothing
    if (*++word == nullptr) return nullptr;
  }
  return nullptr;
}

const char* name_of(const Judgement& j, const char* target) {
  if (j.interpreter[0] != 0) return j.interpreter;
  if (*target != 0) return target;
  return j.file[0] != 0 ? j.file : "a descriptor's program";
}

bool is_allowed(const char* list, const Judgement& j, const char* target) {
  const int saved = errno;
  struct stat program {};
  program.st_dev = j.device;
  program.st_ino = j.inode;
  const char* const names[] = {last_part(name_of(j, target)), last_part(j.file)};
  bool allowed = false;
  while (!allowed && *list != 0) {
    const size_t n = strcspn(list, ",");
    char entry[PATH_MAX];
    if (n != 0 && n < sizeof entry) {
      memcpy(entry, list, n);
      entry[n] = 0;
      if (strcmp(entry, "*") == 0)
        allowed = true;
      else if (strchr(entry, '/') != nullptr)
        allowed = j.inode != 0 && is_same_file(entry, program);
      else
        for (const char* name : names) allowed = allowed || strcmp(entry, name) == 0;
    }
    list += n;
    if (*list == ',') ++list;
  }
  errno = saved;
  return allowed;
}

}  // namespace mw
