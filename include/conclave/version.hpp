// SPDX-License-Identifier: BSL-1.0
#pragma once

/// The library's semantic version; the build reads it from here.
#define CONCLAVE_VERSION_MAJOR 0
#define CONCLAVE_VERSION_MINOR 1
#define CONCLAVE_VERSION_PATCH 0
