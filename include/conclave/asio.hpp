// SPDX-License-Identifier: BSL-1.0
#pragma once

/// The one place that decides which Asio the library uses. Everything else names Asio through the alias
/// `conclave::asio`, so that standalone Asio (1.22.1 and newer, the default) and Boost.Asio (1.81 and newer,
/// with CONCLAVE_USE_BOOST_ASIO defined for the whole program) differ in this file only.

#include <conclave/version.hpp>

#if defined(CONCLAVE_USE_BOOST_ASIO)

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/defer.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>

#else

// Asio before 1.26 does not see that clang with libstdc++ has coroutines.
#if defined(__clang__) && defined(__cpp_impl_coroutine)
#if defined(ASIO_VERSION) && !defined(ASIO_HAS_CO_AWAIT)
#error \
    "Asio was included before conclave and does not see clang's coroutines: include conclave first, or define ASIO_HAS_CO_AWAIT=1 and ASIO_HAS_STD_COROUTINE=1 for the whole program"
#endif
#if !defined(ASIO_HAS_CO_AWAIT)
#define ASIO_HAS_CO_AWAIT 1  // public: Asio's own switch
#endif
#if !defined(ASIO_HAS_STD_COROUTINE)
#define ASIO_HAS_STD_COROUTINE 1  // public: Asio's own switch
#endif
#endif

#include <asio/any_io_executor.hpp>
#include <asio/async_result.hpp>
#include <asio/awaitable.hpp>
#include <asio/co_spawn.hpp>
#include <asio/defer.hpp>
#include <asio/detached.hpp>
#include <asio/dispatch.hpp>
#include <asio/error.hpp>
#include <asio/execution.hpp>
#include <asio/execution_context.hpp>
#include <asio/experimental/awaitable_operators.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <asio/version.hpp>

#if !defined(ASIO_VERSION) || ASIO_VERSION < 102201
#error "conclave needs Asio 1.22.1 or newer"
#endif
#if !defined(ASIO_HAS_CO_AWAIT)
#error \
    "this Asio has no coroutines: compile as C++20, and with clang define ASIO_HAS_CO_AWAIT=1 for the whole program"
#endif

#endif

namespace conclave::inline CONCLAVE_ABI {

#if defined(CONCLAVE_USE_BOOST_ASIO)
namespace asio = ::boost::asio;
namespace detail {
using asio_error_code = ::boost::system::error_code;
using asio_system_error = ::boost::system::system_error;
}  // namespace detail
#else
namespace asio = ::asio;
namespace detail {
using asio_error_code = std::error_code;
using asio_system_error = std::system_error;
}  // namespace detail
#endif

}  // namespace conclave
