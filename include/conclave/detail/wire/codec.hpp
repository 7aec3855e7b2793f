// SPDX-License-Identifier: BSL-1.0
#pragma once

/// Both directions of protobuf's wire format, driven by one table of fields per message.

#include <conclave/detail/wire/decode.hpp>
#include <conclave/detail/wire/encode.hpp>
#include <conclave/detail/wire/field.hpp>
