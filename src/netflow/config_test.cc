#include "netflow/config.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace mw::netflow {
namespace {

class ConfigFile : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mw-config-test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    for (const char* file : {"token", "key", "certificate"}) {
      std::ofstream(path(file)) << "x";
      ASSERT_EQ(::chmod(path(file).c_str(), 0600), 0);
    }
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::string quoted(const std::string& name) const { return "\"" + path(name) + "\"\n"; }

  std::string folder_;
};

// "LINE: text" of each fault.
std::string faults(const ConfigReading& reading) {
  std::string all;
  for (const ConfigFault& f : reading.faults) all += std::to_string(f.line) + ": " + f.text + "\n";
  return all;
}

TEST_F(ConfigFile, NothingMeansTheDefaults) {
  const ConfigReading r = parse_config("");
  EXPECT_EQ(faults(r), "");
  EXPECT_EQ(r.config.listen.address, "127.0.0.1:0");
  EXPECT_FALSE(r.config.listen.read_only);
  EXPECT_FALSE(r.config.exports.any());
  EXPECT_EQ(r.config.exports.timeouts.active_s, 60u);
  EXPECT_EQ(r.config.exports.timeouts.idle_s, 15u);
}

TEST_F(ConfigFile, EverythingIsTaken) {
  const ConfigReading r = parse_config(
      "[netflow]\nlisten = \"0.0.0.0:4711\"\nrole = \"read\"\ntoken_file = " + quoted("token") +
      "read_token_file = " + quoted("token") + "certificate_file = " + quoted("certificate") +
      "key_file = " + quoted("key") +
      "[exports]\nactive_timeout_s = 30\nidle_timeout_s = 5\n"
      "[exports.ipfix]\ncollector = \"[::1]:4739\"\ntransport = \"tcp\"\ndomain = 4294967295\n"
      "template_interval_s = 10\n"
      "[exports.prometheus]\nlisten = \"unix:/run/m\"\n"
      "[exports.json_lines]\nfile = " +
      quoted("flows.json") + "rotate_bytes = 65536\nkeep = 0\n");
  EXPECT_EQ(faults(r), "");
  EXPECT_EQ(r.config.listen.address, "0.0.0.0:4711");
  EXPECT_TRUE(r.config.listen.read_only);
  EXPECT_EQ(r.config.listen.key_file, path("key"));
  const ExportOptions& e = r.config.exports;
  EXPECT_EQ(e.timeouts.active_s, 30u);
  EXPECT_EQ(e.timeouts.idle_s, 5u);
  EXPECT_EQ(e.ipfix.collector, "[::1]:4739");
  EXPECT_TRUE(e.ipfix.tcp);
  EXPECT_EQ(e.ipfix.domain, 4294967295u);
  EXPECT_EQ(e.ipfix.template_s, 10u);
  EXPECT_EQ(e.prometheus.listen, "unix:/run/m");
  EXPECT_EQ(e.json_lines.file, path("flows.json"));
  EXPECT_EQ(e.json_lines.rotate_bytes, 65536u);
  EXPECT_EQ(e.json_lines.keep, 0u);
}

TEST_F(ConfigFile, WhatASessionReachesIsATextOrAList) {
  const ConfigReading r = parse_config(
      "[network]\negress = [\"dns\", \"192.0.2.0/24,2001:db8::/32\"]\nto_host = [3306, "
      "\"53/udp\"]\n");
  EXPECT_EQ(faults(r), "");
  ASSERT_TRUE(r.config.network.egress);
  EXPECT_EQ(r.config.network.egress->text, "dns,192.0.2.0/24,2001:db8::/32");
  EXPECT_EQ(r.config.network.egress->line, 2u);
  ASSERT_TRUE(r.config.network.to_host);
  EXPECT_EQ(r.config.network.to_host->text, "3306,53/udp");
  EXPECT_EQ(r.config.network.to_host->line, 3u);
  EXPECT_EQ(parse_config("[network]\nto_host = 25\n").config.network.to_host->text, "25");
  EXPECT_FALSE(parse_config("").config.network.egress);
  const ConfigReading wrong = parse_config("[network]\negress = [1]\nto_host = true\nelse = 1\n");
  EXPECT_EQ(wrong.faults.size(), 3u) << faults(wrong);
  EXPECT_FALSE(wrong.config.network.egress);
}

TEST_F(ConfigFile, NoListener) {
  const ConfigReading r = parse_config("[netflow]\nlisten = \"none\"\n");
  EXPECT_EQ(faults(r), "");
  EXPECT_EQ(r.config.listen.address, "");
}

TEST_F(ConfigFile, EachFaultIsToldWithItsLine) {
  const ConfigReading r = parse_config(
      "netflo = 1\n"
      "[netflow]\n"
      "listen = \"localhost:80\"\n"
      "role = \"admin\"\n"
      "token_file = \"relative\"\n"
      "[exports]\n"
      "active_timeout_s = 0\n"
      "idle_timeout_s = \"15\"\n"
      "[exports.ipfix]\n"
      "transport = \"sctp\"\n"
      "domain = -1\n"
      "[exports.prometheus]\n"
      "listen = \"0.0.0.0:9464\"\n"
      "[exports.json_lines]\n"
      "file = \"/no/such/folder/x\"\n"
      "rotate_bytes = 1\n");
  for (const char* fault :
       {"1: netflo is unknown; there are: network, application, netflow, exports\n",
        "3: listen has to be an address", "4: role has to be",
        "5: token_file has to be an absolute path", "2: a token is shown",
        "7: active_timeout_s has to be 1 to 86400", "8: idle_timeout_s has to be a whole number",
        "9: exports.ipfix needs a collector", "10: transport has to be",
        "11: domain has to be 0 to", "13: 0.0.0.0:9464 is reached from elsewhere",
        "15: the folder /no/such/folder/ does not", "16: rotate_bytes has to be 65536 to"}) {
    EXPECT_NE(faults(r).find(fault), std::string::npos) << fault << "\n" << faults(r);
  }
  EXPECT_EQ(r.faults.size(), 13u) << faults(r);
}

TEST_F(ConfigFile, SyntaxErrorsHaveAPlace) {
  const ConfigReading r = parse_config("[netflow]\nlisten = 127.0.0.1:0\n");
  ASSERT_EQ(r.faults.size(), 1u);
  EXPECT_EQ(r.faults[0].line, 2u);
  EXPECT_GT(r.faults[0].column, 1u);
}

TEST_F(ConfigFile, BeyondThisHostOnlyWithTokenAndTls) {
  const std::string open = "[netflow]\nlisten = \"0.0.0.0:1\"\n";
  const std::string token = "token_file = " + quoted("token");
  const std::string tls =
      "certificate_file = " + quoted("certificate") + "key_file = " + quoted("key");
  EXPECT_NE(faults(parse_config(open)), "");
  EXPECT_NE(faults(parse_config(open + token)), "");
  EXPECT_NE(faults(parse_config(open + tls)), "");
  EXPECT_EQ(faults(parse_config(open + token + tls)), "");
  EXPECT_NE(faults(parse_config("[netflow]\nlisten = \"[::]:1\"\n")), "");
  EXPECT_EQ(faults(parse_config("[netflow]\nlisten = \"[::1]:1\"\n")), "");
}

TEST_F(ConfigFile, SecretsHaveToBeSecret) {
  ASSERT_EQ(::chmod(path("token").c_str(), 0644), 0);
  const std::string text = "[netflow]\ntoken_file = " + quoted("token") +
                           "certificate_file = " + quoted("certificate") +
                           "key_file = " + quoted("key");
  EXPECT_NE(faults(parse_config(text)).find("chmod 600"), std::string::npos);
  std::filesystem::remove(path("token"));
  EXPECT_NE(faults(parse_config(text)).find("does not exist"), std::string::npos);
}

TEST_F(ConfigFile, AFileThatIsNotThereIsAnError) {
  auto missing = read_config(path("none"));
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().err, ENOENT);
  std::ofstream(path("c.toml")) << "[exports]\nidle_timeout_s = 3\n";
  auto read = read_config(path("c.toml"));
  ASSERT_TRUE(read);
  EXPECT_EQ(read->config.exports.timeouts.idle_s, 3u);
}

TEST_F(ConfigFile, AnyBytesAreARefusalOrAReading) {
  const std::string whole =
      "[netflow]\nlisten = \"127.0.0.1:0\"\n[exports]\nidle_timeout_s = 5\n[exports.ipfix]\n"
      "collector = \"127.0.0.1:1\"\n";
  for (size_t n = 0; n < whole.size(); ++n) {
    (void)parse_config(whole.substr(0, n));
    std::string damaged = whole;
    damaged[n] = static_cast<char>(damaged[n] ^ 0x55);
    const ConfigReading r = parse_config(damaged);
    for (const ConfigFault& f : r.faults) EXPECT_FALSE(f.text.empty());
  }
}

TEST_F(ConfigFile, ProgramsThatMayRunUncovered) {
  const auto allowed = [](const std::string& value) {
    const ConfigReading r = parse_config("[application]\nallow_uncovered = " + value + "\n");
    EXPECT_EQ(faults(r), "") << value;
    return r.config.application.allow_uncovered;
  };
  using List = std::vector<std::string>;
  EXPECT_EQ(allowed("[\"ldconfig\", \"/usr/bin/etcd\"]"), (List{"ldconfig", "/usr/bin/etcd"}));
  EXPECT_EQ(allowed("true"), (List{"*"}));
  EXPECT_EQ(allowed("false"), List{});
  EXPECT_EQ(allowed("[]"), List{});
  EXPECT_EQ(parse_config("").config.application.allow_uncovered, List{});
  for (const char* wrong : {"\"ldconfig\"", "1", "[1]", "[\"\"]", "[\"a,b\"]", "[\"bin/x\"]"})
    EXPECT_NE(faults(parse_config("[application]\nallow_uncovered = " + std::string(wrong))), "")
        << wrong;
  EXPECT_NE(faults(parse_config("[application]\nallow = true\n")), "");
}

}  // namespace
}  // namespace mw::netflow
