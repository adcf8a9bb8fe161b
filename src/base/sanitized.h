// sanitized.h - MW_SANITIZED: built with a sanitizer, whose run-time library asks for more than our own
// code does.
#pragma once

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MW_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MW_SANITIZED 1
#endif
#endif
