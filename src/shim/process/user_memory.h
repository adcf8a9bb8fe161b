// user_memory.h - whether the application's memory is there.
//
// PURPOSE     The kernel answers EFAULT for memory that is not; a copy of ours would end the program.
// INVARIANTS  Pages once found good are not asked about again until the program changes its memory
//             there, through any of the exported functions (interpose_memory.cc).
// THREADS     Any.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mw::shim {

// False if [p, p + n) is not readable: for what control calls take, of at most two pages.
bool is_memory(const void* p, size_t n);
// The same for the data path, every page of it: readable, or writable.
bool is_buffer(const void* p, size_t n);
bool is_room(void* p, size_t n);
// What one copy of the kernel's takes at most: of a buffer that is bad farther behind it moves the
// good part.
constexpr uint32_t kCopyUnit = 32768;

// mlockall(), but for the session's regions: they have room for very many connections, and to lock
// them would fill it. What is touched of them may be swapped out. errno is set on failure.
int lock_all(int flags);

// The program has changed, or is about to change, what is mapped there.
void forget_pages(const void* p, size_t n);
// The program has mapped memory there, with what it gave to mmap().
void note_mapping(void* p, size_t n, int protection, int flags);

}  // namespace mw::shim
