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

/// Header-only by default. With CONCLAVE_SEPARATE_COMPILATION the headers only declare the larger functions, which
/// costs a compiler a fraction of the time; one source file of the program includes <conclave/src.hpp>, or defines
/// CONCLAVE_SOURCE before it includes the single header, and has their definitions.
#if defined(CONCLAVE_SEPARATE_COMPILATION)
#define CONCLAVE_DECL
#if !defined(CONCLAVE_SOURCE)
#define CONCLAVE_DECLARATIONS_ONLY
#elif defined(__GNUC__) && !defined(__clang__)
// GCC takes the lambdas in the frame of a coroutine for types that differ from one translation unit to the next.
#pragma GCC diagnostic ignored "-Wsubobject-linkage"
#endif
#else
#define CONCLAVE_DECL inline
#endif
