// The parts of the driver that need no session around them.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "driver/fd_store.h"
#include "driver/options.h"
#include "transport/local/fd_message.h"

namespace mw {
namespace {

// ---- the command line ----

std::vector<const char*> good_arguments() {
  return {"--registry",        "/r",
          "--session",         "s",
          "--token",           "000102030405060708090a0b0c0d0eFf",
          "--channel-fd",      "3",
          "--session-fd",      "3",
          "--attach-fd",       "3",
          "--placeholders-fd", "3",
          "--drop-pvm-fd",     "3",
          "--drop-ins-fd",     "3",
          "--bell-fds",        "3,3",
          "--ready-fd",        "3"};
}

class Options : public ::testing::Test {
 protected:
  void SetUp() override {
    // Descriptor 3 has to be open.
    if (::fcntl(3, F_GETFD) < 0) {
      ASSERT_EQ(::dup2(0, 3), 3);
      opened_ = true;
    }
  }
  void TearDown() override {
    if (opened_) ::close(3);
  }
  bool opened_ = false;
};

TEST_F(Options, TakesWhatTheFrontEndGives) {
  std::string why;
  auto o = parse_driver_options(good_arguments(), &why);
  ASSERT_TRUE(o) << why;
  EXPECT_EQ(o->token[15], 0xff);
  EXPECT_EQ(o->bell_fds, (std::vector<int>{3, 3}));
  EXPECT_EQ(o->store_fds[0], -1);
}

TEST_F(Options, TakesTheTokenFromTheEnvironment) {
  auto args = good_arguments();
  *std::find(args.begin(), args.end(), args[5]) = "env";
  std::string why;
  ASSERT_EQ(::setenv("MWCOMMS_TOKEN", "ff0102030405060708090a0b0c0d0e0f", 1), 0);
  auto o = parse_driver_options(args, &why);
  ASSERT_TRUE(o) << why;
  EXPECT_EQ(o->token[0], 0xff);
  ASSERT_EQ(::unsetenv("MWCOMMS_TOKEN"), 0);
  EXPECT_FALSE(parse_driver_options(args, &why));
}

TEST_F(Options, RefusesEverythingElse) {
  std::string why;
  for (size_t left_out = 0; left_out < good_arguments().size(); left_out += 2) {
    auto args = good_arguments();
    args.erase(args.begin() + static_cast<long>(left_out),
               args.begin() + static_cast<long>(left_out) + 2);
    EXPECT_FALSE(parse_driver_options(args, &why)) << good_arguments()[left_out];
  }
  const std::vector<std::pair<const char*, const char*>> wrong = {
      {"--token", "00"},          {"--token", "zz0102030405060708090a0b0c0d0e0f"},
      {"--channel-fd", "-1"},     {"--channel-fd", "2"},
      {"--channel-fd", "999999"}, {"--channel-fd", "3x"},
      {"--bell-fds", ""},         {"--bell-fds", "3,"},
      {"--store-fds", "3"},       {"--what", "3"},
      {"--registry", ""}};
  for (const auto& [name, value] : wrong) {
    auto args = good_arguments();
    args.push_back(name);
    args.push_back(value);
    EXPECT_FALSE(parse_driver_options(args, &why)) << name << " " << value;
    EXPECT_EQ(why, name);
  }
  auto args = good_arguments();
  args.push_back("--ready-fd");
  EXPECT_FALSE(parse_driver_options(args, &why));
}

// ---- the store ----

class FdStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int fds[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    in_ = UniqueFd{fds[0]};
    out_ = UniqueFd{fds[1]};
  }
  FdStore make() { return FdStore(in_.get(), out_.get()); }
  std::map<StoreKey, StoreEntry> load() {
    FdStore s = make();
    auto found = s.load();
    EXPECT_TRUE(found);
    return found ? std::move(*found) : std::map<StoreKey, StoreEntry>{};
  }
  UniqueFd in_, out_;
};

TEST_F(FdStoreTest, GivesBackWhatCountsAndItsDescriptors) {
  FdStore first = make();
  int pipe[2];
  ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
  UniqueFd read_end{pipe[0]}, write_end{pipe[1]};
  const int fds[] = {write_end.get()};
  ASSERT_TRUE(first.put({StoreKind::group, 1}, bytes_of(uint32_t{10}), fds));
  ASSERT_TRUE(first.put({StoreKind::group, 2}, bytes_of(uint32_t{20}), {}));
  ASSERT_TRUE(first.put({StoreKind::group, 2}, bytes_of(uint32_t{21}), {}));
  ASSERT_TRUE(first.put({StoreKind::listener, 1}, {}, {}));
  ASSERT_TRUE(first.drop({StoreKind::listener, 1}));
  ASSERT_TRUE(first.drop({StoreKind::listener, 99}));
  write_end.reset();
  for (int round = 0; round < 3; ++round) {  // and leaves it there for the one after
    auto found = load();
    ASSERT_EQ(found.size(), 2u);
    uint32_t value = 0;
    std::memcpy(&value, found[{StoreKind::group, 2}].data.data(), sizeof value);
    EXPECT_EQ(value, 21u);
    StoreEntry& entry = found[{StoreKind::group, 1}];
    ASSERT_EQ(entry.fds.size(), 1u);
    ASSERT_EQ(::write(entry.fds[0].get(), "x", 1), 1);
    char c = 0;
    EXPECT_EQ(::read(read_end.get(), &c, 1), 1);
  }
}

TEST_F(FdStoreTest, NeverFillsUpWithWhatIsDead) {
  FdStore s = make();
  for (uint32_t i = 0; i < 20000; ++i) {
    ASSERT_TRUE(s.put({StoreKind::group, i % 3}, bytes_of(i), {}));
    if (i % 5 == 0) {
      ASSERT_TRUE(s.drop({StoreKind::group, i % 3}));
    }
  }
  EXPECT_EQ(load().size(), 3u);
}

TEST_F(FdStoreTest, SaysSoWhenItIsFull) {
  FdStore s = make();
  const std::vector<std::byte> data(kMaxStoreData);
  uint32_t stored = 0;
  for (;; ++stored) {
    auto put = s.put({StoreKind::listener, stored}, data, {});
    if (put) continue;
    EXPECT_EQ(put.error().fault, Fault::limit);
    break;
  }
  EXPECT_GT(stored, 40u);
}

TEST_F(FdStoreTest, SurvivesADriverThatIsKilledWhileItMovesRecords) {
  FdStore s = make();
  for (uint32_t i = 0; i < 5; ++i) ASSERT_TRUE(s.put({StoreKind::group, i}, bytes_of(i), {}));
  ASSERT_TRUE(s.drop({StoreKind::group, 4}));
  // Killed between the copy to the end and the removal from the front: the first record twice.
  std::byte first[4096];
  auto m = receive_message(out_.get(), first, MSG_PEEK);
  ASSERT_TRUE(m);
  ASSERT_TRUE(send_message(in_.get(), {first, m->bytes}, {}, 0));
  EXPECT_EQ(load().size(), 4u);
  // Something that is not a record at all.
  ASSERT_TRUE(send_message(in_.get(), bytes_of(uint32_t{1}), {}, 0));
  ASSERT_TRUE(send_message(in_.get(), std::vector<std::byte>(9000), {}, 0));
  EXPECT_EQ(load().size(), 4u);
}

}  // namespace
}  // namespace mw
