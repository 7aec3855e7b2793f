# SPDX-License-Identifier: BSL-1.0

# Configures, builds and runs a small project that has conclave as a subproject.
file(REMOVE_RECURSE "${BINARY}")
execute_process(
  COMMAND "${CMAKE_COMMAND}" -S "${SOURCE}" -B "${BINARY}" -G "${GENERATOR}"
    "-DCMAKE_CXX_COMPILER=${COMPILER}" "-DCMAKE_CXX_FLAGS=${FLAGS}" "-DCONCLAVE_SOURCE=${CONCLAVE}"
    "-DCONCLAVE_ASIO_INCLUDE_DIR=${ASIO}" "-DCONCLAVE_USE_BOOST_ASIO=${BOOST_ASIO}"
    "-DCONCLAVE_GRPC_FROM=${GRPC_FROM}" "-DCMAKE_PREFIX_PATH=${PREFIX}"
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${CMAKE_COMMAND}" --build "${BINARY}" COMMAND_ERROR_IS_FATAL ANY)
foreach(target unit_tests integration_tests lock_contention with_etcd headers_alone)
  file(GLOB_RECURSE built "${BINARY}/${target}")
  if(built)
    message(FATAL_ERROR "the subproject built ${built}")
  endif()
endforeach()
execute_process(COMMAND "${BINARY}/guest" COMMAND_ERROR_IS_FATAL ANY)
