// SPDX-License-Identifier: BSL-1.0
#pragma once

/// What the headers only declare under CONCLAVE_SEPARATE_COMPILATION: for one source file of the program, first in
/// it.

#if !defined(CONCLAVE_SEPARATE_COMPILATION)
#error \
    "<conclave/src.hpp> is for programs that are built with CONCLAVE_SEPARATE_COMPILATION defined everywhere"
#elif defined(CONCLAVE_DECLARATIONS_ONLY)
#error "<conclave/src.hpp> comes before all other headers of conclave"
#endif

#ifndef CONCLAVE_SOURCE
#define CONCLAVE_SOURCE
#endif

#include <conclave/conclave.hpp>
