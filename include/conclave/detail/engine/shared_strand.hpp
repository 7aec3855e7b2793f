// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include <conclave/asio.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::engine {

/// An executor that is a strand, in the three words that `any_io_executor` has room for. `asio::strand` is larger:
/// within `any_io_executor` each copy of it, and each property that Asio asks of it, is an allocation, and each
/// suspension of a coroutine makes several.
class shared_strand {
public:
  /// Not a constructor: Asio's concept of an executor would ask itself whether one can be made of the other.
  static shared_strand over(const asio::any_io_executor& inner) {
    return {std::make_shared<core>(inner), false, false};
  }

  [[nodiscard]] asio::execution_context& query(asio::execution::context_t) const noexcept {
    return asio::query(core_->inner, asio::execution::context);
  }

  [[nodiscard]] asio::execution::blocking_t query(asio::execution::blocking_t) const noexcept {
    if (never_blocks_) return asio::execution::blocking.never;
    return asio::execution::blocking.possibly;
  }
  [[nodiscard]] shared_strand require(asio::execution::blocking_t::never_t) const noexcept {
    return {core_, true, works_};
  }
  [[nodiscard]] shared_strand require(asio::execution::blocking_t::possibly_t) const noexcept {
    return {core_, false, works_};
  }

  [[nodiscard]] asio::execution::outstanding_work_t query(
      asio::execution::outstanding_work_t) const noexcept {
    if (works_) return asio::execution::outstanding_work.tracked;
    return asio::execution::outstanding_work.untracked;
  }
  [[nodiscard]] shared_strand require(asio::execution::outstanding_work_t::tracked_t) const {
    if (works_) return *this;
    return {core_->at_work(), never_blocks_, true};
  }
  [[nodiscard]] shared_strand require(asio::execution::outstanding_work_t::untracked_t) const noexcept {
    return {core_->shared_from_this(), never_blocks_, false};
  }

  template <class Work>
  void execute(Work&& work) const {
    (never_blocks_ ? core_->later : core_->now).execute(std::forward<Work>(work));
  }

  friend bool operator==(const shared_strand& a, const shared_strand& b) noexcept {
    return a.core_.get() == b.core_.get();
  }

private:
  struct core : std::enable_shared_from_this<core> {
    explicit core(const asio::any_io_executor& within)
        : inner(within),
          now(asio::make_strand(asio::prefer(within, asio::execution::blocking.possibly))),
          later(asio::require(now, asio::execution::blocking.never)) {}

    /// While copies of what it returns are there, the context has work.
    std::shared_ptr<core> at_work() {
      const std::lock_guard lock{mutex};
      auto there = work.lock();
      if (!there) {
        auto held = asio::prefer(inner, asio::execution::outstanding_work.tracked);
        there = std::make_shared<kept>(kept{std::move(held), shared_from_this()});
        work = there;
      }
      core* const same = there->whose.get();
      return {std::move(there), same};
    }

    struct kept {
      asio::any_io_executor held;  ///< Goes last: the context may go as soon as it has no work.
      std::shared_ptr<core> whose;
    };

    asio::any_io_executor inner;
    asio::strand<asio::any_io_executor> now;
    asio::strand<asio::any_io_executor> later;
    std::mutex mutex;
    std::weak_ptr<kept> work;  ///< Guarded by it.
  };

  shared_strand(std::shared_ptr<core> of, bool never_blocks, bool works) noexcept
      : core_(std::move(of)), never_blocks_(never_blocks), works_(works) {}

  std::shared_ptr<core> core_;
  bool never_blocks_ = false;
  bool works_ = false;
};

static_assert(sizeof(shared_strand) <= 3 * sizeof(void*));

}  // namespace conclave::detail::engine
