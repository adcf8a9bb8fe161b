// The prober against a server of our own, which answers as each test wants.
#include "guard/probe.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include "base/clock.h"

namespace mw::guard {
namespace {

TEST(ProbeTarget, IsReadAsPeopleWriteIt) {
  const auto http = parse_target("http://192.0.2.1/health?x=1");
  ASSERT_TRUE(http);
  EXPECT_TRUE(http->http);
  EXPECT_EQ(netflow::to_string(http->address), "192.0.2.1:80");
  EXPECT_EQ(http->path, "/health?x=1");
  EXPECT_EQ(netflow::to_string(parse_target("http://[2001:db8::1]:8080")->address),
            "[2001:db8::1]:8080");
  EXPECT_EQ(netflow::to_string(parse_target("http://[2001:db8::1]")->address), "[2001:db8::1]:80");
  EXPECT_FALSE(parse_target("192.0.2.1:25")->http);
  EXPECT_EQ(to_string(*parse_target("192.0.2.1:25")), "192.0.2.1:25");
  EXPECT_EQ(to_string(*http), "http://192.0.2.1/health?x=1");
  for (const char* wrong : {"", "192.0.2.1", "example.org:80", "https://192.0.2.1/", "http://",
                            "unix:/run/x", "http://192.0.2.1/a b", "http://192.0.2.1/\r\nX: y"})
    EXPECT_FALSE(parse_target(wrong)) << wrong;
}

class ProberTest : public ::testing::Test {
 protected:
  ProberTest() : listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a);
    ::listen(listener_.get(), 64);
    socklen_t size = sizeof a;
    ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&a), &size);
    target_ = "127.0.0.1:" + std::to_string(ntohs(a.sin_port));
    rules_.interval_ms = rules_.pressed_interval_ms = 20;
    // Long, as a machine that is busy must not decide this test.
    rules_.slow_ms = rules_.timeout_ms = 30'000;
  }
  void start(const std::string& target) {
    auto prober = Prober::start(*parse_target(target), rules_);
    ASSERT_TRUE(prober);
    prober_ = std::move(*prober);
  }
  // Answers whoever connects, until a result is there.
  ProbeResult result(const std::string& answer) {
    for (;;) {
      pollfd polled[2] = {{listener_.get(), POLLIN, 0}, {prober_->fd(), POLLIN, 0}};
      if (::poll(polled, 2, 60'000) <= 0) return {};
      if (polled[1].revents != 0)
        if (const auto results = prober_->take(); !results.empty()) return results.front();
      if (polled[0].revents == 0) continue;
      held_.emplace_back(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (answer.empty()) continue;
      char request[4096];
      const ssize_t n = ::recv(held_.back().get(), request, sizeof request, 0);
      asked_.assign(request, n > 0 ? static_cast<size_t>(n) : 0);
      ::send(held_.back().get(), answer.data(), answer.size(), MSG_NOSIGNAL);
    }
  }

  UniqueFd listener_;
  std::vector<UniqueFd> held_;
  std::string target_;
  std::string asked_;
  ProbeRules rules_;
  std::unique_ptr<Prober> prober_;
};

TEST_F(ProberTest, AnAnswerInTimeIsServed) {
  start("http://" + target_ + "/here");
  EXPECT_EQ(result("HTTP/1.1 403 Forbidden\r\n\r\n").fate, Fate::served);
  EXPECT_TRUE(asked_.starts_with("GET /here HTTP/1.1\r\nHost: " + target_ + "\r\n")) << asked_;
}

TEST_F(ProberTest, AServerErrorAndWhatIsNoHttpAreNot) {
  start("http://" + target_);
  EXPECT_EQ(result("HTTP/1.1 503 Unavailable\r\n\r\n").fate, Fate::refused);
  prober_.reset();
  start("http://" + target_);
  EXPECT_EQ(result("220 mail.example ready").fate, Fate::refused);
}

TEST_F(ProberTest, SilenceIsLateAndThenATimeout) {
  rules_.slow_ms = 50;
  rules_.timeout_ms = 100;
  start("http://" + target_);
  std::vector<Fate> fates;
  const int64_t end = monotonic_ns() + 60'000'000'000;
  while (monotonic_ns() < end && (fates.empty() || fates.back() != Fate::timeout))
    fates.push_back(result("").fate);
  ASSERT_FALSE(fates.empty());
  EXPECT_EQ(fates.front(), Fate::late);
  EXPECT_EQ(fates.back(), Fate::timeout);
}

TEST_F(ProberTest, AConnectionAloneIsEnoughIfNoPageIsAskedFor) {
  start(target_);
  EXPECT_EQ(result("").fate, Fate::served);
}

TEST_F(ProberTest, NobodyThereIsRefused) {
  listener_.reset();
  listener_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  start("http://" + target_);
  EXPECT_EQ(result("").fate, Fate::refused);
}

}  // namespace
}  // namespace mw::guard
