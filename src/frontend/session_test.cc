#include "frontend/session.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

namespace mw {
namespace {

class SessionFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-session-test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    base_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(base_); }

  SessionRecord record(const std::string& name) {
    SessionRecord r;
    r.name = name;
    r.owner = identify(::getpid());
    r.mark = "MWCOMMS_SESSION=mwcomms/none-such-" + name + ":";
    r.command = "server --option=1";
    return r;
  }

  std::string base_;
};

TEST_F(SessionFolder, RecordSurvivesTheRoundTrip) {
  SessionRecord r = record("a-0");
  r.isolated = true;
  r.host_net = this_network();
  auto plan = choose_addresses({}, {0}, true);
  ASSERT_TRUE(plan);
  r.plan = *plan;
  r.ins_id = 3;
  r.memory = {4711, "mw-session"};
  r.driver_options = {"--netflow", "127.0.0.1:9997", "--netflow-token-file", "/a file"};
  r.ins = {17, 99};
  for (const char* text : {"8080:80", "[fd00::1]:53/udp"}) {
    auto p = parse_publish(text);
    ASSERT_TRUE(p);
    r.published.push_back(*p);
  }
  auto egress = parse_egress("dns,192.0.2.0/24,2001:db8::1");
  auto to_host = parse_to_host("3306,53/udp");
  ASSERT_TRUE(egress && to_host);
  r.reach = {*egress, *to_host, {"127.0.0.1", "fe80::1%eth0"}, {"127.0.0.53"}};
  auto back = decode("a-0", encode(r));
  ASSERT_TRUE(back);
  EXPECT_EQ(encode(*back), encode(r));
  EXPECT_EQ(back->plan.ins4, r.plan.ins4);
  EXPECT_EQ(back->published[1].host, "fd00::1");
  EXPECT_EQ(back->command, r.command);
  EXPECT_EQ(back->driver_options, r.driver_options);
  EXPECT_EQ(to_string(back->reach.egress), "dns,192.0.2.0/24,2001:db8::1");
  EXPECT_EQ(to_string(back->reach.to_host), "3306,53/udp");
  EXPECT_EQ(back->reach.name_servers, r.reach.name_servers);
  EXPECT_EQ(back->reach.stubs, r.reach.stubs);
}

TEST_F(SessionFolder, DamagedRecordsAreRefused) {
  EXPECT_FALSE(decode("a-0", ""));
  EXPECT_FALSE(decode("a-0", "owner=1 2\n"));
  EXPECT_FALSE(decode("a-0", "no equals sign\n"));
  EXPECT_FALSE(decode("../etc", encode(record("a-0"))));
  // A link name that is not the slot's would make us delete somebody's interface.
  SessionRecord r = record("a-0");
  r.isolated = true;
  r.plan.link = "eth0";
  EXPECT_FALSE(decode("a-0", encode(r)));
}

TEST_F(SessionFolder, ListsWhatIsThere) {
  const SessionRecord r = record("b-1");
  ASSERT_TRUE(make_session_folder(base_, r));
  EXPECT_FALSE(make_session_folder(base_, r)) << "a name is used once";
  ASSERT_EQ(::mkdir((base_ + "/half-2").c_str(), 0700), 0);  // its maker died before the record
  const auto found = list_sessions(base_);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].name, "b-1");
  EXPECT_EQ(state_of(found[0]), SessionState::running);
  EXPECT_EQ(found[1].name, "half-2");
  EXPECT_EQ(state_of(found[1]), SessionState::dead);
  ASSERT_TRUE(remove_session_folder(base_, "b-1"));
  EXPECT_EQ(list_sessions(base_).size(), 1u);
}

TEST_F(SessionFolder, AReusedPidIsNotTheOwner) {
  SessionRecord r = record("c-0");
  r.owner.start += 1;
  EXPECT_EQ(state_of(r), SessionState::dead);
}

TEST_F(SessionFolder, RefusesAFolderThatOthersCanWrite) {
  ASSERT_TRUE(BaseLock::acquire(base_));
  ASSERT_EQ(::chmod(base_.c_str(), 0777), 0);
  auto lock = BaseLock::acquire(base_);
  ASSERT_FALSE(lock);
  EXPECT_NE(lock.error().text().find("somebody else"), std::string::npos);
}

}  // namespace
}  // namespace mw
