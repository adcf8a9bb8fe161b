#include "kmod/core/optlog.h"

/* Linux's numbers; tests/kmod/kmod_test.cc holds them against the headers. */
#define LEVEL_SOCKET 1
#define LEVEL_IP 0
#define LEVEL_IPV6 41
#define NAME_SO_DETACH_FILTER 27
#define NAME_SO_CNX_ADVICE 53
#define NAME_IP_MSFILTER 41
#define NAME_MCAST_MSFILTER 48

/* Bytes of a membership's value with which the values of its filters begin, or 0 if there are none:
 * group and interface. */
#define IP_GROUP_BYTES 8u
#define MCAST_GROUP_BYTES 136u

struct pair {
  int32_t level;
  int32_t join;
  int32_t leave;
  bool by_filter;       /* of a source; it is a filter of a group itself */
  uint32_t group_bytes; /* of a membership of a group */
};

static const struct pair pairs[] = {
    {LEVEL_IP, 35, 36, false, IP_GROUP_BYTES},      /* IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP */
    {LEVEL_IP, 39, 40, true, 0},                    /* IP_ADD_ and IP_DROP_SOURCE_MEMBERSHIP */
    {LEVEL_IP, 38, 37, true, 0},                    /* IP_BLOCK_SOURCE, IP_UNBLOCK_SOURCE */
    {LEVEL_IP, 42, 45, false, MCAST_GROUP_BYTES},   /* MCAST_JOIN_GROUP, MCAST_LEAVE_GROUP */
    {LEVEL_IP, 46, 47, true, 0},                    /* MCAST_JOIN_ and MCAST_LEAVE_SOURCE_GROUP */
    {LEVEL_IP, 43, 44, true, 0},                    /* MCAST_BLOCK_SOURCE, MCAST_UNBLOCK_SOURCE */
    {LEVEL_IPV6, 20, 21, false, 0},                 /* IPV6_JOIN_GROUP, IPV6_LEAVE_GROUP */
    {LEVEL_IPV6, 27, 28, false, 0},                 /* IPV6_JOIN_ANYCAST, IPV6_LEAVE_ANYCAST */
    {LEVEL_IPV6, 42, 45, false, MCAST_GROUP_BYTES}, /* MCAST_* as above */
    {LEVEL_IPV6, 46, 47, true, 0},
    {LEVEL_IPV6, 43, 44, true, 0},
};
#define PAIRS (sizeof pairs / sizeof pairs[0])

static const struct pair* pair_of(int32_t level, int32_t name) {
  size_t k;
  for (k = 0; k < PAIRS; ++k) {
    if (pairs[k].level == level && (pairs[k].join == name || pairs[k].leave == name))
      return &pairs[k];
  }
  return NULL;
}

static bool is_whole_filter(int32_t level, int32_t name) {
  return (level == LEVEL_IP && name == NAME_IP_MSFILTER) ||
         ((level == LEVEL_IP || level == LEVEL_IPV6) && name == NAME_MCAST_MSFILTER);
}

enum mw_option_kind mw_option_kind(int32_t level, int32_t name) {
  const struct pair* const pair = pair_of(level, name);
  if (pair != NULL) return pair->join == name ? MW_OPTION_JOIN : MW_OPTION_LEAVE;
  if (is_whole_filter(level, name)) return MW_OPTION_FILTER;
  if (level == LEVEL_SOCKET && (name == NAME_SO_DETACH_FILTER || name == NAME_SO_CNX_ADVICE))
    return MW_OPTION_ACT;
  return MW_OPTION_VALUE;
}

void mw_optlog_init(struct mw_optlog* l, uint8_t* bytes, uint32_t room) {
  l->bytes = bytes;
  l->room = room;
  l->used = 0;
}

static uint32_t padded(uint32_t len) {
  return (len + 3) & ~3u;
}

static void read_option(const struct mw_optlog* l, uint32_t at, struct mw_option* out) {
  memcpy(out, l->bytes + at, sizeof *out);
}

static uint32_t behind(uint32_t at, const struct mw_option* o) {
  return at + (uint32_t)sizeof *o + padded(o->len);
}

static void remove_at(struct mw_optlog* l, uint32_t at, const struct mw_option* o) {
  const uint32_t next = behind(at, o);
  memmove(l->bytes + at, l->bytes + next, l->used - next);
  l->used -= next - at;
}

/* The first option of this name and, unless value is NULL, this value. False: there is none. */
static bool find(const struct mw_optlog* l, int32_t level, int32_t name, const uint8_t* value,
                 uint32_t len, uint32_t* at, struct mw_option* o) {
  for (*at = 0; *at < l->used; *at = behind(*at, o)) {
    read_option(l, *at, o);
    if (o->level != level || o->name != name) continue;
    if (value == NULL) return true;
    if (o->len == len && memcmp(l->bytes + *at + sizeof *o, value, len) == 0) return true;
  }
  return false;
}

/* A membership ended: so did what its filters said, from `at` on. */
static void remove_filters(struct mw_optlog* l, uint32_t at, const struct pair* group,
                           const uint8_t* value) {
  while (at < l->used) {
    struct mw_option o;
    const struct pair* its;
    read_option(l, at, &o);
    its = pair_of(o.level, o.name);
    if (o.level == group->level && o.len >= group->group_bytes && o.name != group->leave &&
        ((its != NULL && its->by_filter) || is_whole_filter(o.level, o.name)) &&
        memcmp(l->bytes + at + sizeof o, value, group->group_bytes) == 0) {
      remove_at(l, at, &o);
    } else {
      at = behind(at, &o);
    }
  }
}

/* True: the leave undid a join of the log, and neither has to be replayed. */
static bool cancel(struct mw_optlog* l, const struct pair* pair, const uint8_t* value,
                   uint32_t len) {
  struct mw_option o;
  uint32_t at;
  if (!find(l, pair->level, pair->join, value, len, &at, &o)) return false;
  remove_at(l, at, &o);
  if (pair->group_bytes != 0 && len >= pair->group_bytes) remove_filters(l, at, pair, value);
  return true;
}

bool mw_optlog_has_room(const struct mw_optlog* l, int32_t level, int32_t name,
                        const uint8_t* value, uint32_t len) {
  const enum mw_option_kind kind = mw_option_kind(level, name);
  uint64_t room = l->room - l->used, need = (uint64_t)len + sizeof(struct mw_option) + 3;
  struct mw_option o;
  uint32_t at;
  need &= ~(uint64_t)3;
  if (kind == MW_OPTION_ACT) return true;
  if (kind == MW_OPTION_LEAVE && find(l, level, pair_of(level, name)->join, value, len, &at, &o))
    return true;
  /* The former value leaves its room to the new one. */
  if (kind == MW_OPTION_VALUE && find(l, level, name, NULL, 0, &at, &o))
    room += behind(at, &o) - at;
  return need <= room;
}

static void append(struct mw_optlog* l, int32_t level, int32_t name, const uint8_t* value,
                   uint32_t len) {
  struct mw_option o;
  o.level = level;
  o.name = name;
  o.len = len;
  memcpy(l->bytes + l->used, &o, sizeof o);
  if (len != 0) memcpy(l->bytes + l->used + sizeof o, value, len);
  memset(l->bytes + l->used + sizeof o + len, 0, padded(len) - len);
  l->used = behind(l->used, &o);
}

enum mw_status mw_optlog_add(struct mw_optlog* l, int32_t level, int32_t name, const uint8_t* value,
                             uint32_t len) {
  const enum mw_option_kind kind = mw_option_kind(level, name);
  struct mw_option o;
  uint32_t at;
  if (!mw_optlog_has_room(l, level, name, value, len)) return MW_FULL;
  if (kind == MW_OPTION_ACT) return MW_OK;
  if (kind == MW_OPTION_LEAVE && cancel(l, pair_of(level, name), value, len)) return MW_OK;
  if (kind == MW_OPTION_VALUE && find(l, level, name, NULL, 0, &at, &o)) remove_at(l, at, &o);
  append(l, level, name, value, len);
  return MW_OK;
}

enum mw_status mw_optlog_next(const struct mw_optlog* l, uint32_t* at, struct mw_option* out,
                              const uint8_t** value) {
  if (*at >= l->used) return MW_NONE;
  read_option(l, *at, out);
  *value = l->bytes + *at + sizeof *out;
  *at = behind(*at, out);
  return MW_OK;
}
