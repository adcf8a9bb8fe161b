#include "guard/availability.h"

#include <gtest/gtest.h>

namespace mw::guard {
namespace {

constexpr int64_t kMs = 1'000'000;

class AvailabilityTest : public ::testing::Test {
 protected:
  // The next probe, 100 ms after the one before.
  Service probe(Fate fate, bool pressed = false) {
    now_ += 100 * kMs;
    availability_.add({now_ - 50 * kMs, now_, fate, 50}, pressed);
    return availability_.state();
  }

  int64_t now_ = 1'000'000 * kMs;
  Availability availability_{ProbeRules{}};
};

TEST_F(AvailabilityTest, OneBadProbeIsNoTrouble) {
  for (int k = 0; k < 20; ++k)
    EXPECT_EQ(probe(k % 2 == 0 ? Fate::late : Fate::served), Service::served);
}

TEST_F(AvailabilityTest, TwoInARowAreAndOneIsIfTheSamplesAgree) {
  probe(Fate::late);
  EXPECT_EQ(probe(Fate::late), Service::degraded);
  EXPECT_EQ(availability_.bad_since_ns(), now_ - 150 * kMs);
  AvailabilityTest::availability_ = Availability(ProbeRules{});
  EXPECT_EQ(probe(Fate::late, true), Service::degraded);
}

TEST_F(AvailabilityTest, NoAnswersAreDenial) {
  probe(Fate::late);
  probe(Fate::late);
  EXPECT_EQ(probe(Fate::timeout), Service::degraded);
  EXPECT_EQ(probe(Fate::timeout), Service::denied);
  EXPECT_EQ(probe(Fate::slow), Service::denied) << "a late answer alone ends no denial";
  AvailabilityTest::availability_ = Availability(ProbeRules{});
  probe(Fate::refused);
  EXPECT_EQ(probe(Fate::refused), Service::denied);
}

TEST_F(AvailabilityTest, ItIsServedAgainAfterAWhileWithoutABadOne) {
  for (int k = 0; k < 3; ++k) probe(Fate::refused);
  EXPECT_EQ(probe(Fate::served), Service::degraded);
  for (int k = 0; k < 20; ++k) EXPECT_EQ(probe(Fate::served), Service::degraded);
  EXPECT_EQ(probe(Fate::late), Service::degraded);
  for (int k = 0; k < 29; ++k) EXPECT_EQ(probe(Fate::served), Service::degraded);
  probe(Fate::served);
  EXPECT_EQ(probe(Fate::served), Service::served);
  EXPECT_EQ(availability_.bad_since_ns(), 0);
}

}  // namespace
}  // namespace mw::guard
