// SPDX-License-Identifier: BSL-1.0

// The targets that carry the precompiled headers need a source.
