// session.h - what the process calls need of the interpreter's main loop.
#pragma once

#include <sys/types.h>

#include <string>

namespace sockagent {

struct Identity {
  std::string program;    // absolute path of the interpreter, for exec
  std::string directory;  // holds NAME.req and NAME.rep
};
const Identity& identity();

// Serves as process `name` until told to quit; the first reply answers request `id`. Used by main()
// and, after fork, by the child's only thread.
[[noreturn]] void serve(const std::string& name, const std::string& id);

// The request that the calling thread executes.
const std::string& current_request();
// The kernel id of the thread that executes actor thread `name`, or 0.
pid_t thread_id(const std::string& name);
// Ends the process once the reply has been written.
[[noreturn]] void reply_and_exit(const std::string& text, int status);

}  // namespace sockagent
