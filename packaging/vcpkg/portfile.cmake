# SPDX-License-Identifier: BSL-1.0

# An overlay port: `vcpkg install conclave --overlay-ports=packaging/vcpkg` in a checkout of conclave.

get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)

vcpkg_check_features(OUT_FEATURE_OPTIONS options FEATURES boost-asio CONCLAVE_USE_BOOST_ASIO)
vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS
    ${options}
    -DCONCLAVE_BUILD_TESTS=OFF
    -DCONCLAVE_BUILD_EXAMPLES=OFF
    -DCONCLAVE_INSTALL=ON
    -DCONCLAVE_GRPC_FROM=cmake)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(PACKAGE_NAME conclave CONFIG_PATH share/cmake/conclave)
vcpkg_fixup_pkgconfig()
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug" "${CURRENT_PACKAGES_DIR}/share/doc")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
set(VCPKG_POLICY_EMPTY_LIBRARY_FOLDER enabled)
