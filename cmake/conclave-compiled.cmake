# SPDX-License-Identifier: BSL-1.0

# conclave::compiled, for those who would rather compile the larger functions once than in each source file: to link
# with in place of conclave::conclave. It is built only if something links with it.

if(NOT TARGET conclave::compiled)
  file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/conclave_compiled.cpp" CONTENT "#include <conclave/src.hpp>\n")
  add_library(conclave_compiled STATIC EXCLUDE_FROM_ALL "${CMAKE_CURRENT_BINARY_DIR}/conclave_compiled.cpp")
  add_library(conclave::compiled ALIAS conclave_compiled)
  target_link_libraries(conclave_compiled PUBLIC conclave::conclave)
  target_compile_definitions(conclave_compiled PUBLIC CONCLAVE_SEPARATE_COMPILATION)
endif()
