# SPDX-License-Identifier: BSL-1.0

# Finds what conclave needs, for its own build and for those who find its installed package, and wraps it in two
# imported targets:
#
#   conclave::grpc   gRPC's and protobuf's libraries and the threads
#   conclave::asio   the Asio that CONCLAVE_USE_BOOST_ASIO chooses, with the definitions that go with it
#
# What is missing is told in conclave_missing, which is empty otherwise.

set(conclave_missing "")

if(NOT TARGET conclave::grpc)
  find_package(Threads QUIET)
  if(NOT TARGET Threads::Threads)
    set(conclave_missing "conclave needs threads")
  endif()

  # gRPC has two descriptions of itself. Whoever points CMake at an installation means its CMake package. Without
  # such a hint pkg-config goes first: the CMake package of Debian 12 stops the whole configuration when the code
  # generators, which nothing here needs, are not installed.
  set(CONCLAVE_GRPC_FROM "auto" CACHE STRING "Where gRPC is looked for: auto, cmake or pkg-config")
  set_property(CACHE CONCLAVE_GRPC_FROM PROPERTY STRINGS auto cmake pkg-config)
  set(conclave_grpc_target "")
  if(NOT CONCLAVE_GRPC_FROM MATCHES "^(auto|cmake|pkg-config)$")
    set(conclave_missing "CONCLAVE_GRPC_FROM is '${CONCLAVE_GRPC_FROM}', not auto, cmake or pkg-config")
  elseif(TARGET gRPC::grpc++)
    set(conclave_grpc_target gRPC::grpc++)
  else()
    set(conclave_grpc_order pkg-config cmake)
    file(TO_CMAKE_PATH "$ENV{CMAKE_PREFIX_PATH}" conclave_environment_prefix)
    find_file(CONCLAVE_GRPC_HINT NAMES gRPCConfig.cmake grpc-config.cmake
      PATHS ${gRPC_DIR} ${gRPC_ROOT} $ENV{gRPC_DIR} $ENV{gRPC_ROOT} ${CMAKE_PREFIX_PATH} ${conclave_environment_prefix}
      PATH_SUFFIXES lib/cmake/grpc lib64/cmake/grpc share/grpc
      DOC "gRPC's CMake package in a folder that CMake was pointed at" NO_DEFAULT_PATH)
    mark_as_advanced(CONCLAVE_GRPC_HINT)
    if(CONCLAVE_GRPC_HINT)
      set(conclave_grpc_order cmake pkg-config)
    endif()
    if(NOT CONCLAVE_GRPC_FROM STREQUAL "auto")
      set(conclave_grpc_order "${CONCLAVE_GRPC_FROM}")
    endif()
    foreach(source IN LISTS conclave_grpc_order)
      if(conclave_grpc_target)
        break()
      elseif(source STREQUAL "cmake")
        find_package(gRPC CONFIG QUIET)
        if(TARGET gRPC::grpc++)
          set(conclave_grpc_target gRPC::grpc++)
        endif()
      else()
        find_package(PkgConfig QUIET)
        if(PKG_CONFIG_FOUND)
          pkg_check_modules(CONCLAVE_GRPC QUIET IMPORTED_TARGET grpc++)
          if(TARGET PkgConfig::CONCLAVE_GRPC)
            set(conclave_grpc_target PkgConfig::CONCLAVE_GRPC)
          endif()
        endif()
      endif()
    endforeach()
    if(NOT conclave_grpc_target)
      set(conclave_missing
        "conclave needs gRPC for C++ and found neither its CMake package (gRPC) nor its pkg-config module "
        "(grpc++). Debian and Ubuntu: apt-get install libgrpc++-dev pkg-config")
    endif()
  endif()

  if(NOT conclave_missing AND NOT TARGET protobuf::libprotobuf)
    find_package(Protobuf QUIET)
    if(NOT TARGET protobuf::libprotobuf)
      set(conclave_missing "conclave needs protobuf's runtime library and headers. "
        "Debian and Ubuntu: apt-get install libprotobuf-dev")
    endif()
  endif()

  if(NOT conclave_missing)
    add_library(conclave::grpc INTERFACE IMPORTED)
    target_link_libraries(conclave::grpc INTERFACE
      "${conclave_grpc_target}" protobuf::libprotobuf Threads::Threads)
  endif()
endif()

if(NOT conclave_missing AND NOT TARGET conclave::asio)
  set(conclave_asio_libraries "")
  set(conclave_asio_folder "")
  if(CONCLAVE_USE_BOOST_ASIO)
    set(conclave_asio_definitions CONCLAVE_USE_BOOST_ASIO)
    if(NOT TARGET Boost::headers)
      find_package(Boost 1.81 QUIET)
    endif()
    if(TARGET Boost::headers)
      set(conclave_asio_libraries Boost::headers)
    else()
      set(conclave_missing "conclave needs Boost 1.81 or newer when CONCLAVE_USE_BOOST_ASIO is on. "
        "Debian 12: apt-get install libboost1.81-dev")
    endif()
  else()
    # Asio before 1.26 does not see that clang has coroutines. Programs include Asio's headers themselves, before
    # or after ours, so that the definitions belong to the target as well.
    set(conclave_asio_definitions
      ASIO_STANDALONE "$<$<CXX_COMPILER_ID:Clang,AppleClang>:ASIO_HAS_CO_AWAIT=1;ASIO_HAS_STD_COROUTINE=1>")
    # Standalone Asio has no CMake package of its own: a target made by the surrounding project, or the header.
    if(TARGET asio::asio)
      set(conclave_asio_libraries asio::asio)
    else()
      find_path(CONCLAVE_ASIO_INCLUDE_DIR NAMES asio.hpp DOC "The folder that contains standalone Asio's asio.hpp")
      set(conclave_asio_folder "${CONCLAVE_ASIO_INCLUDE_DIR}")
      if(NOT CONCLAVE_ASIO_INCLUDE_DIR)
        set(conclave_missing
          "conclave needs standalone Asio 1.22.1 or newer and did not find asio.hpp. Debian and Ubuntu: "
          "apt-get install libasio-dev; elsewhere set CONCLAVE_ASIO_INCLUDE_DIR to the folder that contains it")
      endif()
    endif()
  endif()
  if(NOT conclave_missing)
    add_library(conclave::asio INTERFACE IMPORTED)
    target_compile_definitions(conclave::asio INTERFACE "${conclave_asio_definitions}")
    target_link_libraries(conclave::asio INTERFACE ${conclave_asio_libraries})
    if(conclave_asio_folder)
      target_include_directories(conclave::asio SYSTEM INTERFACE "${conclave_asio_folder}")
    endif()
  endif()
endif()
list(JOIN conclave_missing "" conclave_missing)
