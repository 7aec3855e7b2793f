// SPDX-License-Identifier: BSL-1.0

#include <conclave/client.hpp>
#include <conclave/detail/rpc/secret.hpp>
#include <conclave/testing/child_process.hpp>
#include <conclave/tls_options.hpp>

#include <fstream>
#include <string>

#include "support/catch.hpp"

namespace {

namespace asio = conclave::asio;
using conclave::client;
using conclave::client_options;
using conclave::tls_options;
using conclave::detail::rpc::secret;
using conclave::test::contains;

const std::string certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
const std::string key = "-----BEGIN EC PRIVATE KEY-----\nhush\n-----END EC PRIVATE KEY-----\n";

template <class Function>
std::string refusal(Function function) {
  try {
    function();
    return {};
  } catch (const conclave::error& e) {
    CHECK(e.code() == conclave::errc::invalid_argument);
    return e.what();
  }
}

}  // namespace

TEST_CASE("TLS options are taken as text or from files") {
  const conclave::testing::temporary_folder folder{"conclave-test-"};
  std::ofstream{folder.path() / "ca.pem"} << certificate;
  std::ofstream{folder.path() / "key.pem"} << key;
  CHECK(refusal([&] { tls_options{}.ca(certificate); }).empty());
  CHECK(refusal([&] { tls_options{}.ca_file(folder.path() / "ca.pem"); }).empty());
  CHECK(refusal([&] { tls_options{}.certificate(certificate, key); }).empty());
  CHECK(refusal([&] {
          tls_options{}.certificate_files(folder.path() / "ca.pem", folder.path() / "key.pem");
        }).empty());
  CHECK(refusal([&] { tls_options{}.server_name("etcd.example"); }).empty());
}

TEST_CASE("a TLS option that cannot be is refused by name, and never with what was in a file") {
  const conclave::testing::temporary_folder folder{"conclave-test-"};
  std::ofstream{folder.path() / "key.pem"} << key;
  std::ofstream{folder.path() / "empty.pem"};
  const auto missing = folder.path() / "missing.pem";
  CHECK_THAT(refusal([&] { tls_options{}.ca_file(missing); }),
             contains("ca_file: cannot read " + missing.string()) && contains("No such file"));
  CHECK_THAT(refusal([&] { tls_options{}.ca_file(folder.path() / "empty.pem"); }), contains("no PEM text"));
  CHECK_THAT(refusal([&] { tls_options{}.ca_file(folder.path()); }), contains("ca_file"));
  CHECK_THAT(refusal([&] { tls_options{}.ca("nonsense"); }), contains("ca: no PEM text with a certificate"));
  CHECK_THAT(refusal([&] { tls_options{}.certificate(certificate, "nonsense"); }),
             contains("certificate: no PEM text with a private key"));
  CHECK_THAT(refusal([&] { tls_options{}.server_name(""); }), contains("server_name"));
  const auto swapped = refusal([&] { tls_options{}.certificate(key, certificate); });
  CHECK_THAT(swapped, contains("certificate: no PEM text"));
  CHECK(swapped.find("hush") == std::string::npos);
}

TEST_CASE("TLS that no endpoint would use is refused") {
  asio::io_context context;
  const auto make = [&](const char* endpoints) {
    client c{context.get_executor(),
             client_options{}.endpoints(endpoints).tls(tls_options{}.ca(certificate))};
  };
  CHECK_THAT(refusal([&] { make("http://127.0.0.1:1,unix:///nowhere"); }),
             contains("every endpoint is a plain one"));
  CHECK(refusal([&] { make("http://127.0.0.1:1,https://127.0.0.1:1"); }).empty());
  CHECK(refusal([&] { make("127.0.0.1:1"); }).empty());
}

TEST_CASE("a secret is shared by its copies and overwritten behind itself") {
  secret a{"hush"};
  const secret b = a;
  a = secret{};
  CHECK(a.empty());
  CHECK(b.reveal() == "hush");
  std::string text = "a long text that does not fit into the string itself";
  secret::overwrite(text);
  CHECK(text.empty());
  CHECK(secret{}.reveal().empty());
}
