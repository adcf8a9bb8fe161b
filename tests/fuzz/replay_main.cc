// replay_main.cc - runs a fuzz target without a fuzzer: every file of its corpus, then `rounds`
// changed copies of them. The changes come from a fixed seed, so that a failure comes again.
//
// A target that says what came of an input (mw_fuzz_outcome) gets the corpus and the first changed
// copies once more, the last one first: what an input leads to must not depend on the one before.
//
// usage: TARGET CORPUS_DIR ROUNDS, or TARGET FILE
#include <fcntl.h>
#include <sanitizer/common_interface_defs.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "fuzz_input.h"

namespace {

using Bytes = std::vector<uint8_t>;

Bytes read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(in), {});
}

// Log lines are what the code under test is expected to write, by the thousand; a sanitizer's
// report is not, and still goes to the real standard error.
void silence_log() {
  __sanitizer_set_report_fd(reinterpret_cast<void*>(static_cast<intptr_t>(::dup(STDERR_FILENO))));
  const int nowhere = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  ::dup2(nowhere, STDERR_FILENO);
  ::close(nowhere);
}

void change(Bytes& bytes, const Bytes& other, std::minstd_rand& rnd) {
  const auto below = [&rnd](size_t n) { return n == 0 ? 0 : rnd() % n; };
  switch (rnd() % 5) {
    case 0:
      if (!bytes.empty()) bytes[below(bytes.size())] ^= static_cast<uint8_t>(1u << rnd() % 8);
      return;
    case 1:
      if (!bytes.empty()) bytes[below(bytes.size())] = static_cast<uint8_t>(rnd());
      return;
    case 2:
      bytes.insert(bytes.begin() + static_cast<long>(below(bytes.size() + 1)),
                   static_cast<uint8_t>(rnd()));
      return;
    case 3:
      bytes.resize(below(bytes.size() + 1));
      return;
    default: {
      const size_t from = below(other.size());
      bytes.insert(bytes.begin() + static_cast<long>(below(bytes.size() + 1)),
                   other.begin() + static_cast<long>(from), other.end());
    }
  }
}

// An input of which it is known what came of it.
struct Done {
  Bytes bytes;
  uint64_t outcome;
};
constexpr size_t kMostDone = 1000;

void run(const Bytes& bytes, std::vector<Done>& done) {
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  if (mw_fuzz_outcome != nullptr && done.size() < kMostDone)
    done.push_back({bytes, mw_fuzz_outcome()});
}

// False: the order of the inputs counts.
bool run_backward(const std::vector<Done>& done) {
  for (size_t i = done.size(); i-- > 0;) {
    LLVMFuzzerTestOneInput(done[i].bytes.data(), done[i].bytes.size());
    if (mw_fuzz_outcome() == done[i].outcome) continue;
    std::printf("input %zu leads to something else after the one behind it\n", i);
    return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: %s CORPUS_DIR ROUNDS | FILE\n", argv[0]);
    return 2;
  }
  std::vector<Bytes> corpus;
  if (argc == 2) {
    corpus.push_back(read_file(argv[1]));
  } else {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(argv[1]))
      files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    for (const auto& file : files) corpus.push_back(read_file(file));
  }
  if (corpus.empty()) {
    std::fprintf(stderr, "%s: no inputs\n", argv[1]);
    return 1;
  }
  silence_log();
  const int rounds = argc == 3 ? std::atoi(argv[2]) : 0;
  std::vector<Done> done;
  for (const Bytes& bytes : corpus) run(bytes, done);
  std::minstd_rand rnd(1);
  for (int i = 0; i < rounds; ++i) {
    Bytes bytes = corpus[rnd() % corpus.size()];
    for (unsigned changes = 1 + rnd() % 8; changes > 0; --changes)
      change(bytes, corpus[rnd() % corpus.size()], rnd);
    if (bytes.size() > 4096) bytes.resize(4096);
    if (const char* keep = std::getenv("MW_FUZZ_LAST"); keep != nullptr) {
      std::ofstream(keep, std::ios::binary)
          .write(reinterpret_cast<const char*>(bytes.data()), static_cast<long>(bytes.size()));
    }
    run(bytes, done);
  }
  if (!run_backward(done)) return 1;
  std::printf("%zu inputs, %d changed ones\n", corpus.size(), rounds);
  return 0;
}
