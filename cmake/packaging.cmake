# SPDX-License-Identifier: BSL-1.0

# What `cmake --install` and `cpack` put where: headers, the CMake package, the pkg-config file. Nothing of it
# depends on the processor.

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(conclave_package_dir "${CMAKE_INSTALL_DATAROOTDIR}/cmake/conclave")

install(DIRECTORY include/conclave DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING
  PATTERN "*.hpp" PATTERN "*.ipp")

install(TARGETS conclave EXPORT conclaveTargets)
install(EXPORT conclaveTargets NAMESPACE conclave:: DESTINATION "${conclave_package_dir}")
configure_package_config_file(cmake/conclaveConfig.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/conclaveConfig.cmake"
  INSTALL_DESTINATION "${conclave_package_dir}")
# Until 1.0 a minor version may change the interface.
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/conclaveConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES
  "${CMAKE_CURRENT_BINARY_DIR}/conclaveConfig.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/conclaveConfigVersion.cmake"
  cmake/conclave-compiled.cmake
  cmake/conclave-dependencies.cmake
  DESTINATION "${conclave_package_dir}")

set(conclave_pc_definition ASIO_STANDALONE)
if(CONCLAVE_USE_BOOST_ASIO)
  set(conclave_pc_definition CONCLAVE_USE_BOOST_ASIO)
endif()
configure_file(cmake/conclave.pc.in "${CMAKE_CURRENT_BINARY_DIR}/conclave.pc" @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/conclave.pc" DESTINATION "${CMAKE_INSTALL_DATAROOTDIR}/pkgconfig")

install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DATAROOTDIR}/doc/libconclave-dev" RENAME copyright)

if(PROJECT_IS_TOP_LEVEL)
  set(CPACK_GENERATOR DEB)
  set(CPACK_PACKAGE_NAME libconclave-dev)
  set(CPACK_PACKAGE_VENDOR conclave)
  set(CPACK_PACKAGE_CONTACT "The authors of conclave <conclave@localhost>")
  set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
  set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
  set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
  set(CPACK_DEBIAN_PACKAGE_ARCHITECTURE all)
  set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
  set(CPACK_DEBIAN_PACKAGE_DEPENDS
    "libgrpc++-dev, libprotobuf-dev, libasio-dev (>= 1:1.22.1) | libboost1.81-dev, pkg-config")
  include(CPack)
endif()
