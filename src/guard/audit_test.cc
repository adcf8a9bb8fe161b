#include "guard/audit.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "netflow/address.h"

namespace mw::guard {
namespace {

Decision some_decision() {
  Decision d;
  d.rule = "slow-request";
  d.socket = netflow::encode({1, 104});
  d.peer = {*netflow::parse_address("192.0.2.7"), 4711};
  d.measured = {{"seconds", 11.5}, {"bytes", 87}};
  d.limits = {{"min_rate", 240}};
  return d;
}

TEST(Audit, ALineNamesEverything) {
  const Moment when{1'700'000'000'123'456'789, 42};
  const auto line = nlohmann::json::parse(line_of(when, some_decision(), true, EACCES, 7));
  EXPECT_EQ(line, nlohmann::json::parse(R"({"ts": "2023-11-14T22:13:20.123456Z", "ts_mono_ns": 42,
      "schema": 1, "what": "close", "socket": "1:104", "peer": "192.0.2.7:4711",
      "rule": "slow-request", "measured": {"seconds": 11.5, "bytes": 87},
      "limits": {"min_rate": 240}, "ttl_s": 0, "dry_run": true, "result": "Permission denied",
      "status": 13, "id": 7})"));
}

TEST(Audit, ABlockNamesThePeerAlone) {
  Decision d = some_decision();
  d.act = Act::block;
  d.ttl_s = 60;
  const auto line = nlohmann::json::parse(line_of({}, d, false, 0, 0));
  EXPECT_EQ(line["peer"], "192.0.2.7");
  EXPECT_EQ(line["result"], "done");
  EXPECT_EQ(line["ttl_s"], 60);
  EXPECT_FALSE(line.contains("socket"));
  EXPECT_FALSE(line.contains("id"));
}

TEST(Audit, WhatWasHeldBackIsNoActAndHasNoResult) {
  Decision d = some_decision();
  d.held_back = true;
  const auto line = nlohmann::json::parse(line_of({}, d, false, 0, 0));
  EXPECT_EQ(line["what"], "held");
  EXPECT_EQ(line["act"], "close");
  EXPECT_EQ(line["socket"], "1:104");
  EXPECT_EQ(line["measured"]["bytes"], 87);
  for (const char* none : {"result", "status", "ttl_s"}) EXPECT_FALSE(line.contains(none));
}

TEST(Audit, TheSessionIsToldTheSameAndThatItEndsWithUs) {
  Decision d = some_decision();
  d.act = Act::cap;
  d.value = 10;
  d.ttl_s = 60;
  const netflow::ExtendedRequest r = request_of(d, true);
  EXPECT_EQ(r.reason, "slow-request: seconds 11.5, bytes 87; limits: min_rate 240");
  EXPECT_EQ(r.ttl_s, 60u);
  EXPECT_EQ(r.options, netflow::kDryRun | netflow::kEndsWithConnection);
  EXPECT_EQ(r.request.name, static_cast<uint16_t>(netflow::Feature::peer_cap));
  EXPECT_EQ(r.request.value0, 10u);
  EXPECT_EQ(netflow::peer_of(r.request), d.peer.address);
  d.act = Act::close;
  EXPECT_EQ(netflow::socket_of(request_of(d, false).request), netflow::decode_socket(d.socket));
  d.act = Act::block;
  EXPECT_EQ(request_of(d, false).request.value0, 1u);
}

TEST(Audit, TheLogIsAppendedToAndFollowsARotation) {
  char name[] = "/tmp/mw-audit-test.XXXXXX";
  const UniqueFd made{::mkstemp(name)};
  ASSERT_TRUE(made);
  const std::string path = name;
  auto log = AuditLog::open(path);
  ASSERT_TRUE(log);
  ASSERT_TRUE(log->write("one"));
  ASSERT_EQ(std::rename(name, (path + ".1").c_str()), 0);
  ASSERT_TRUE(log->reopen());
  ASSERT_TRUE(log->write("two"));
  std::stringstream old, fresh;
  old << std::ifstream(path + ".1").rdbuf();
  fresh << std::ifstream(path).rdbuf();
  EXPECT_EQ(old.str(), "one\n");
  EXPECT_EQ(fresh.str(), "two\n");
  ::unlink(path.c_str());
  ::unlink((path + ".1").c_str());
  EXPECT_FALSE(AuditLog::open("/nowhere/at/all"));
}

}  // namespace
}  // namespace mw::guard
