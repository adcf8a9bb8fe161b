#include "shim/socket/confinement.h"

#include "shim/process/stack.h"
#include "shim/socket/registrations.h"

namespace mw::shim {

void become_confined() {
  if (process.attached && !process.confined) {
    for (Stack& stack : stacks) stack.map_all();
    process.session.map_all();
    map_registrations();
  }
  process.confined = true;
}

}  // namespace mw::shim
