// name_files.h - the files about host names that an INS has copies of: the front end makes them in the
// session's folder and keeps them up to date, the driver shows them to the INS, which reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace mw {

enum class NameFile : uint32_t { resolv_conf, hosts, nsswitch };

// By NameFile: its name in /etc, and in kNamesFolder.
constexpr const char* kNameFiles[] = {"resolv.conf", "hosts", "nsswitch.conf"};
constexpr uint32_t kNameFileCount = std::size(kNameFiles);

constexpr const char* kNamesFolder = "names";  // of the session's folder

// Lists of names to be kept away have some hundred thousand lines.
constexpr size_t kMaxNameFileBytes = size_t{16} << 20;

}  // namespace mw
