#include "shim/confinement.h"

#include "shim/registrations.h"
#include "shim/stack.h"

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
