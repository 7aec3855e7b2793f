# SPDX-License-Identifier: BSL-1.0

# Takes conclave in one way, as a user would who starts with an empty folder: configures, builds, and runs a small
# program on a private etcd.
#
#   cmake -DWAY=... -DCONCLAVE=SOURCE_FOLDER -DBUILD=ITS_BUILD_FOLDER -DFOLDER=WHERE_TO_WORK -DWITH_ETCD=PROGRAM
#         -DCOMPILER=... -DLAUNCHER=CCACHE -DGENERATOR=... -DOPTIONS=... -DCPP_FLAGS=... -DPREFIX_PATH=A:B
#         -P consume.cmake
#
# WAY: find_package, pkg_config, add_subdirectory, fetch_content, vendored, debian_package.

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# The program locks once on an etcd of its own, and says so.
function(run_program program)
  execute_process(COMMAND "${WITH_ETCD}" sh -c "'${program}' \"\$ETCD_ENDPOINTS\""
    OUTPUT_VARIABLE printed COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
  if(NOT printed STREQUAL "locked\n")
    message(FATAL_ERROR "the program printed '${printed}'")
  endif()
endfunction()

function(build_project name)
  run("${CMAKE_COMMAND}" -S "${CMAKE_CURRENT_LIST_DIR}/${name}" -B "${FOLDER}/build" -G "${GENERATOR}"
    "-DPROGRAM=${CMAKE_CURRENT_LIST_DIR}/program.cpp" "-DCMAKE_CXX_COMPILER=${COMPILER}" ${OPTIONS} ${ARGN})
  run("${CMAKE_COMMAND}" --build "${FOLDER}/build")
  run_program("${FOLDER}/build/program")
endfunction()

function(files_below folder result)
  file(GLOB_RECURSE files RELATIVE "${folder}" "${folder}/*")
  list(SORT files)
  if(NOT files)
    message(FATAL_ERROR "${folder} is empty")
  endif()
  set(${result} "${files}" PARENT_SCOPE)
endfunction()

set(ENV{CMAKE_PREFIX_PATH} "${PREFIX_PATH}")
set(ENV{CMAKE_CXX_COMPILER_LAUNCHER} "${LAUNCHER}")
file(REMOVE_RECURSE "${FOLDER}")
file(MAKE_DIRECTORY "${FOLDER}")
set(prefix "${FOLDER}/prefix")

if(WAY STREQUAL "find_package")
  run("${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${prefix}")
  build_project(find_package "-Dconclave_ROOT=${prefix}")
elseif(WAY STREQUAL "add_subdirectory")
  build_project(add_subdirectory "-DCONCLAVE=${CONCLAVE}")
elseif(WAY STREQUAL "fetch_content")
  # An archive, as a release is one: what is not in it, the build cannot need.
  set(release "${FOLDER}/conclave")
  file(COPY "${CONCLAVE}/CMakeLists.txt" "${CONCLAVE}/LICENSE" "${CONCLAVE}/cmake" "${CONCLAVE}/include"
    DESTINATION "${release}")
  execute_process(COMMAND "${CMAKE_COMMAND}" -E tar czf "${FOLDER}/conclave.tar.gz" conclave
    WORKING_DIRECTORY "${FOLDER}" COMMAND_ERROR_IS_FATAL ANY)
  build_project(fetch_content "-DARCHIVE=${FOLDER}/conclave.tar.gz")
elseif(WAY STREQUAL "pkg_config")
  run("${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${prefix}")
  set(ENV{PKG_CONFIG_PATH} "${prefix}/share/pkgconfig:$ENV{PKG_CONFIG_PATH}")
  run(sh -c "${LAUNCHER} '${COMPILER}' -std=c++20 -c '${CMAKE_CURRENT_LIST_DIR}/program.cpp' -o program.o \
${CPP_FLAGS} $(pkg-config --cflags conclave) && '${COMPILER}' program.o -o program $(pkg-config --libs conclave)"
    WORKING_DIRECTORY "${FOLDER}")
  run_program("${FOLDER}/program")
elseif(WAY STREQUAL "vendored")
  set(example "${CONCLAVE}/examples/vendored")
  file(COPY "${example}/main.cpp" "${example}/Makefile" DESTINATION "${FOLDER}")
  file(COPY "${CONCLAVE}/single_include/conclave" DESTINATION "${FOLDER}")
  set(make make -C "${FOLDER}" "CXX=${LAUNCHER} ${COMPILER}" "CPPFLAGS=${CPP_FLAGS}")
  run(${make})
  run_program("${FOLDER}/program")
  file(COPY "${CMAKE_CURRENT_LIST_DIR}/second.cpp" DESTINATION "${FOLDER}")
  file(REMOVE "${FOLDER}/program")
  run(${make} "sources=main.cpp second.cpp")
  run_program("${FOLDER}/program")
  file(WRITE "${FOLDER}/source.cpp" "#define CONCLAVE_SOURCE\n#include <conclave/conclave.hpp>\n")
  run(${make} clean)
  run(${make} "sources=main.cpp second.cpp source.cpp" "CPPFLAGS=${CPP_FLAGS} -DCONCLAVE_SEPARATE_COMPILATION")
  run_program("${FOLDER}/program")
elseif(WAY STREQUAL "debian_package")
  run("${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${prefix}")
  run(cpack --config "${BUILD}/CPackConfig.cmake" -G DEB -B "${FOLDER}")
  file(GLOB package "${FOLDER}/*.deb")
  run(dpkg-deb --info "${package}")
  run(dpkg-deb --extract "${package}" "${FOLDER}/root")
  files_below("${prefix}" installed)
  files_below("${FOLDER}/root/usr" packaged)
  if(NOT installed STREQUAL packaged)
    message(FATAL_ERROR "installed:\n${installed}\nin the package:\n${packaged}")
  endif()
else()
  message(FATAL_ERROR "no way '${WAY}'")
endif()
