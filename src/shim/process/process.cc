#include "shim/process/process.h"

namespace mw::shim {

constinit Process process;  // start() runs before any dynamic initialiser would

}  // namespace mw::shim
