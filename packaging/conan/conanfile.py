# SPDX-License-Identifier: BSL-1.0

# Conan 2: `conan create packaging/conan` in a checkout. What it needs are Conan's own packages of gRPC, protobuf and
# Asio.

import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, load
from conan.tools.layout import basic_layout


class ConclaveConan(ConanFile):
    name = "conclave"
    description = "etcd coordination recipes as Asio coroutines"
    license = "BSL-1.0"
    topics = ("etcd", "asio", "coroutines", "lock", "queue")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"boost_asio": [True, False]}
    default_options = {"boost_asio": False}
    no_copy_source = True

    @property
    def _top(self):
        return os.path.join(self.recipe_folder, "..", "..")

    def set_version(self):
        # Outside of a checkout the version comes with the exported recipe.
        header = os.path.join(self._top, "include", "conclave", "version.hpp")
        if not self.version and os.path.exists(header):
            parts = dict(re.findall(r"#define CONCLAVE_VERSION_(\w+) +(\d+)", load(self, header)))
            self.version = ".".join(parts[part] for part in ("MAJOR", "MINOR", "PATCH"))

    def export_sources(self):
        copy(self, "include/*", self._top, self.export_sources_folder)
        copy(self, "LICENSE", self._top, self.export_sources_folder)

    def layout(self):
        basic_layout(self)

    def requirements(self):
        self.requires("grpc/[>=1.50 <2]", transitive_headers=True, transitive_libs=True)
        self.requires("protobuf/[>=3.21]", transitive_headers=True, transitive_libs=True)
        if self.options.boost_asio:
            self.requires("boost/[>=1.81 <2]", transitive_headers=True)
        else:
            self.requires("asio/[>=1.22.1 <2]", transitive_headers=True)

    def package_id(self):
        self.info.settings.clear()

    def validate(self):
        check_min_cppstd(self, 20)

    def package(self):
        copy(self, "*", os.path.join(self.source_folder, "include"), os.path.join(self.package_folder, "include"))
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))

    def package_info(self):
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        self.cpp_info.set_property("cmake_target_name", "conclave::conclave")
        self.cpp_info.set_property("pkg_config_name", "conclave")
        self.cpp_info.requires = ["grpc::grpc++", "protobuf::libprotobuf"]
        if self.options.boost_asio:
            self.cpp_info.requires.append("boost::headers")
            self.cpp_info.defines = ["CONCLAVE_USE_BOOST_ASIO"]
        else:
            self.cpp_info.requires.append("asio::asio")
            self.cpp_info.defines = ["ASIO_STANDALONE"]
        self.cpp_info.system_libs = ["pthread"]
