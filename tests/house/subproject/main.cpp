// SPDX-License-Identifier: BSL-1.0
#include <conclave/asio.hpp>
#include <conclave/error.hpp>
#include <conclave/version.hpp>

#include <google/protobuf/io/coded_stream.h>
#include <grpcpp/version_info.h>

conclave::asio::awaitable<void> nothing() { co_return; }

int main() {
  static_assert(CONCLAVE_VERSION_MAJOR + CONCLAVE_VERSION_MINOR + CONCLAVE_VERSION_PATCH > 0);
  return google::protobuf::io::CodedOutputStream::VarintSize32(1) == 1 ? 0 : 1;
}
