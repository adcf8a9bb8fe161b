#include "frontend/relay.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

namespace mw {
namespace {

class RelayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-relay-XXXXXX";
    out_.reset(::mkstemp(name));
    ASSERT_TRUE(out_);
    path_ = name;
    relay_ = std::make_unique<Relay>(out_.get());
    auto end = relay_->open();
    ASSERT_TRUE(end);
    end_ = std::move(*end);
  }
  void TearDown() override { ::unlink(path_.c_str()); }

  void say(const std::string& text) {
    ASSERT_EQ(::write(end_.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    relay_->take();
  }
  std::string shown() const {
    std::ostringstream text;
    text << std::ifstream(path_).rdbuf();
    return text.str();
  }

  UniqueFd out_, end_;
  std::string path_;
  std::unique_ptr<Relay> relay_;
};

TEST_F(RelayTest, PassesLinesOnWhole) {
  say("one\ntw");
  EXPECT_EQ(shown(), "one\n");
  say("o\n");
  EXPECT_EQ(shown(), "one\ntwo\n");
  say("last words");
  end_.reset();
  relay_->take();
  EXPECT_EQ(shown(), "one\ntwo\nlast words\n");
  EXPECT_EQ(relay_->fd(), -1);
}

TEST_F(RelayTest, AHintIsSaidOnceWhicheverInsSaysIt) {
  say("mwins: hint: a\nmwins: other\nmwins: hint: a\n");
  auto next = relay_->open();
  ASSERT_TRUE(next);
  end_ = std::move(*next);
  say("mwins: hint: b\nmwins: other\n");
  EXPECT_EQ(shown(), "mwins: hint: a\nmwins: other\nmwins: other\n");
}

TEST_F(RelayTest, NoEscapeSequenceReachesATerminal) {
  say(
      std::string("\x1b]0;title\x07 \x1b[2J\r\b\x7f\xc2\x9b"
                  "1m\0x\n",
                  26));
  const std::string text = shown();
  EXPECT_TRUE(
      std::all_of(text.begin(), text.end() - 1, [](char c) { return c >= ' ' && c <= '~'; }));
  EXPECT_NE(text.find("?]0;title? ?[2J"), std::string::npos) << text;
}

TEST_F(RelayTest, ALineIsCut) {
  say(std::string(5000, 'a') + "\nb\n");
  EXPECT_EQ(shown(), std::string(Relay::kLongestLine, 'a') + "...\nb\n");
}

TEST_F(RelayTest, AFloodIsNotShownAndDoesNotBlockTheInsEither) {
  std::string flood;
  for (int i = 0; i < 1000; ++i) flood += "again\n";
  say(flood);
  const std::string text = shown();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), Relay::kLinesASecond + 1);
  EXPECT_NE(text.find("more than is shown"), std::string::npos);
  EXPECT_EQ(relay_->fd(), -1) << "until the next second";
  const std::string more(4096, 'x');
  ssize_t n = 0;
  for (int i = 0; i < 100 && n >= 0; ++i) n = ::write(end_.get(), more.data(), more.size());
  EXPECT_EQ(n, -1);
  EXPECT_EQ(errno, EAGAIN);
}

}  // namespace
}  // namespace mw
