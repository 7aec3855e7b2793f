# SPDX-License-Identifier: BSL-1.0

# Our tests and examples against the single header: each of our headers that is in it becomes a forwarder to it; the
# others (those for tests) a forwarder to themselves. conclave_include_dir is where they are.

set(single "${PROJECT_SOURCE_DIR}/single_include/conclave/conclave.hpp")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${single}")
file(STRINGS "${single}" sections REGEX "^// ---- conclave/.* ----$")
if(NOT sections)
  message(FATAL_ERROR "${single} does not say which headers it has")
endif()
set(conclave_include_dir "${PROJECT_BINARY_DIR}/single-header")
file(GLOB_RECURSE headers CONFIGURE_DEPENDS
  RELATIVE "${PROJECT_SOURCE_DIR}/include" "${PROJECT_SOURCE_DIR}/include/conclave/*.hpp")
foreach(header IN LISTS headers)
  if("// ---- ${header} ----" IN_LIST sections)
    set(target "${single}")
  else()
    set(target "${PROJECT_SOURCE_DIR}/include/${header}")
  endif()
  file(CONFIGURE OUTPUT "${conclave_include_dir}/${header}" CONTENT "#pragma once\n#include \"@target@\"\n" @ONLY)
endforeach()
