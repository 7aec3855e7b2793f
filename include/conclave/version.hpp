// SPDX-License-Identifier: BSL-1.0
#pragma once

/// The library's semantic version; the build reads it from here.
#define CONCLAVE_VERSION_MAJOR 0
#define CONCLAVE_VERSION_MINOR 1
#define CONCLAVE_VERSION_PATCH 0

/// The inline namespace that everything is in, after the version and the Asio it is built with: what two builds that
/// differ in these make of a name is not the same, and they do not link.
#if defined(CONCLAVE_USE_BOOST_ASIO)
#define CONCLAVE_ABI v0_1_boost
#else
#define CONCLAVE_ABI v0_1_standalone
#endif
