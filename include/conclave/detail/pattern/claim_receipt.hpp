// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <array>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <exception>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <conclave/detail/client/client_state.hpp>
#include <conclave/detail/client/lease_state.hpp>
#include <conclave/detail/engine/call.hpp>
#include <conclave/detail/engine/lease_keeper.hpp>
#include <conclave/detail/engine/runtime.hpp>
#include <conclave/error.hpp>
#include <conclave/etcd/txn.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::detail::pattern {

/// The lease under which a client's claims leave their receipts: one for all its queues, kept alive as long as one
/// of them is in use, and revoked behind the last. On the strand, but for the destructor.
class receipt_lease final : public std::enable_shared_from_this<receipt_lease> {
public:
  /// A claim whose answer got lost can be found out for so long after the last contact.
  static constexpr std::chrono::seconds ttl{60};
  /// When a server has refused one, it is not asked again for this long.
  static constexpr std::chrono::seconds refusal_time{10};

  explicit receipt_lease(const client::client_state& of) : runtime_(of.runtime()), keeper_(of.keeper()) {}
  receipt_lease(const receipt_lease&) = delete;
  receipt_lease& operator=(const receipt_lease&) = delete;

  ~receipt_lease() {
    if (id_ == 0) return;
    try {
      const auto on = std::move(runtime_);
      on->run([on, keeper = std::move(keeper_), id = id_] {
        keeper->remove(id);
        on->spawn(client::revoke_behind(on, id, on->now() + ttl));
      });
    } catch (...) {  // out of memory: it ends by itself
    }
  }

  /// Asks for it, so that it is there when it is needed.
  void prepare() {
    if (id_ != 0 || runtime_->now() < not_before_ || std::exchange(asking_, true)) return;
    runtime_->spawn(ask(shared_from_this()));
  }

  /// Its id; zero when the servers give none. Throws what is worth another attempt.
  static asio::awaitable<lease_id> get(std::shared_ptr<receipt_lease> self);

  /// A server says that it does not know it.
  void forget(lease_id id) {
    if (id_ != id) return;
    id_ = 0;
    keeper_->remove(id);
  }

private:
  static asio::awaitable<void> ask(std::shared_ptr<receipt_lease> self);

  void keep(lease_id id, engine::duration time, engine::time_point sent) {
    id_ = id;
    engine::lease_keeper::listener to;
    to.on_renewed = [](engine::time_point) {};
    to.on_lost = [weak = weak_from_this(), id](engine::lease_keeper_machine::loss) {
      const auto self = weak.lock();
      if (self && self->id_ == id) self->id_ = 0;
    };
    keeper_->add(id, time, sent, std::move(to));
  }

  std::shared_ptr<engine::runtime> runtime_;
  std::shared_ptr<engine::lease_keeper> keeper_;
  std::vector<std::shared_ptr<engine::waiter<lease_id>>> waiting_;
  lease_id id_ = 0;
  engine::time_point not_before_{};
  bool asking_ = false;
};

/// What tells a client whether a claim of its own was applied when the answer does not: a key which each claim
/// writes, in its own transaction, on the condition that the one before wrote it last. Whoever asks about a claim
/// writes it too, on the same condition, so that the claim cannot be applied any more if it has not been.
///
/// The key is `__NAME/receipt/` and the lease's id in hexadecimal, which is no item for any queue. One claim at a
/// time. On the strand.
class claim_receipt {
public:
  explicit claim_receipt(const std::string& queue_prefix) : prefix_("__" + queue_prefix + "receipt/") {}

  /// From now on under this lease, which has not been used yet or is the one of before.
  void hang_on(lease_id lease) {
    if (lease_ == lease) return;
    std::array<char, 16> digits{};
    const auto end =
        std::to_chars(digits.data(), digits.data() + digits.size(), static_cast<std::uint64_t>(lease), 16);
    lease_ = lease;
    key_ = prefix_ + std::string(digits.data(), end.ptr);
    written_ = 0;
  }
  [[nodiscard]] lease_id lease() const noexcept { return lease_; }

  /// Makes `claim`, which has no other branch yet, leave a receipt: by its last operation.
  void add_to(txn& claim) const {
    claim.when(mod_revision(key_) == written_)
        .then(put(key_, claim_mark, {.lease = lease_}))
        .otherwise(range(key_, {.keys_only = true}));
  }

  /// The claim was answered so. False if the receipt was not the one that it asked for.
  bool learn(const txn_response& answer) {
    const auto before = written_;
    if (answer.succeeded) {
      written_ = answer.header.revision;
      return true;
    }
    const auto& found = answer.at(0).range().kvs;
    written_ = found.empty() ? 0 : found.front().mod_revision;
    return written_ == before;
  }

  struct verdict {
    enum class kind { not_applied, applied, unknown };
    kind is = kind::unknown;
    revision at = 0;  ///< Where it was applied.
  };

  /// What became of a claim. One that `may_come_late` is kept from it. Throws `error` if it is worth asking again.
  /// What it says of an applied claim stays true until `settled`.
  static asio::awaitable<verdict> find_out(std::shared_ptr<engine::runtime> on, claim_receipt& of,
                                           bool may_come_late);

  /// All is known of a claim that was applied at that revision; or nothing ever will be.
  void settled(revision at) { written_ = at; }

private:
  static constexpr const char* claim_mark = "claim";
  static constexpr const char* inquiry_mark = "inquiry";

  std::string prefix_;
  std::string key_;
  lease_id lease_ = 0;
  revision written_ = 0;  ///< The key's mod revision, as far as is known.
};

}  // namespace conclave::detail::pattern

#ifndef CONCLAVE_DECLARATIONS_ONLY
#include <conclave/detail/pattern/impl/claim_receipt.ipp>
#endif
