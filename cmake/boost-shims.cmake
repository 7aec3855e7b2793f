# SPDX-License-Identifier: BSL-1.0

# Our tests and examples are written for standalone Asio: they include <asio/...> and say asio::. With Boost.Asio
# they find these headers in its place. Users need none of this: they include what they use.

file(GLOB_RECURSE sources CONFIGURE_DEPENDS
  "${PROJECT_SOURCE_DIR}/tests/*.[ch]pp" "${PROJECT_SOURCE_DIR}/examples/*.[ch]pp")
set(included "")
foreach(source IN LISTS sources)
  file(STRINGS "${source}" lines REGEX "^#include <asio[./]")
  list(APPEND included ${lines})
endforeach()
list(REMOVE_DUPLICATES included)
set(shims "${PROJECT_BINARY_DIR}/boost-shims")
foreach(line IN LISTS included)
  string(REGEX REPLACE "^#include <(.*)>.*" "\\1" header "${line}")
  file(CONFIGURE OUTPUT "${shims}/${header}" @ONLY CONTENT [[
#pragma once
#include <boost/@header@>
#include <boost/system/system_error.hpp>
namespace boost::asio {
using boost::system::error_code;
using boost::system::system_error;
}
namespace asio = ::boost::asio;
]])
endforeach()
target_include_directories(conclave_dev_options BEFORE INTERFACE "${shims}")
