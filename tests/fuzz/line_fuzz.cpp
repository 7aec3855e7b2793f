// SPDX-License-Identifier: BSL-1.0

// The line's machine beside a store: the input is the order in which keys are written, events arrive, and listings
// are read and answered. What the machine says must be what the store held at the revision that the machine knows.

#include <conclave/detail/pattern/line_machine.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "fuzz/fuzzing.hpp"
#include "fuzz/store.hpp"

namespace conclave::test {
namespace {

using detail::pattern::line_grammar;
using detail::pattern::line_machine;

constexpr const char* participants[] = {"a/1", "a/2", "a/30", "a/ab", "a/ffffffffffffffff"};
constexpr const char* others[] = {"a/", "a/x", "a/AB", "a/b/1", "a/12345678901234567"};

bool is_participant(const std::string& key) {
  return std::find(std::begin(participants), std::end(participants), key) != std::end(participants);
}

class line_run {
public:
  explicit line_run(program& input) : input_{input} { machine_.begin(); }

  void step() {
    switch (input_.below(8)) {
      case 0:
      case 1:
      case 2:
        write();
        break;
      case 3:
      case 4:
      case 5:
        events();
        break;
      case 6:
        if (!read_at_)
          read_at_ = store_.now();
        else if (!applied_)
          snapshot();
        else
          confirm();
        break;
      default:
        if (input_.one_in(4)) gap();
        break;
    }
    check();
  }

private:
  using line = std::set<std::pair<revision, std::string>>;

  void write() {
    std::vector<std::string> puts;
    std::vector<std::string> removals;
    for (auto left = 1 + input_.below(3); left != 0; --left) {
      const std::string key = input_.one_in(5) ? input_.among(others) : input_.among(participants);
      (input_.one_in(2) ? removals : puts).push_back(key);
    }
    store_.write(puts, removals, "");
  }

  void events() {
    const auto before = known();
    const auto batch = store_.tell(1 + input_.below(4), input_.below(4));
    tell("events: " + std::to_string(batch.size()));
    const auto touched = machine_.events(batch);
    if (!applied_) {
      demand(touched.empty(), "before the snapshot nobody is woken");
      return;
    }
    applied_ = std::max(*applied_, store_.told());
    must_wake(before, touched);
  }

  /// Whoever waits for a change of his standing, or to be first, is woken by it.
  void must_wake(const line& before, const std::vector<std::string>& touched) const {
    const std::set<std::string> woken(touched.begin(), touched.end());
    const auto after = known();
    for (const auto* key : participants)
      demand(standing(before, key) == standing(after, key) || woken.contains(key), "who is changed is told");
    const auto first = front(after);
    demand(first.empty() || first == front(before) || woken.contains(first),
           "who comes to the front is told");
  }

  /// A reading beside the watch, which may be ahead of it or behind.
  void confirm() {
    tell("reading at " + std::to_string(*read_at_));
    const auto before = known();
    std::vector<key_value> keys;
    for (const auto& [key, each] : store_.at(*read_at_)) keys.push_back(each);
    const auto touched = machine_.confirm(keys, *read_at_);
    applied_ = std::max(*applied_, *read_at_);
    read_at_.reset();
    must_wake(before, touched);
  }

  void snapshot() {
    tell("snapshot at " + std::to_string(*read_at_));
    std::vector<key_value> keys;
    std::size_t foreign = 0;
    for (const auto& [key, each] : store_.at(*read_at_)) {
      keys.push_back(each);
      if (!is_participant(key)) ++foreign;
    }
    machine_.snapshot(keys, *read_at_);
    demand(machine_.foreign() == foreign, "what is no participant is counted");
    applied_ = std::max(*read_at_, store_.told());
    read_at_.reset();
  }

  /// The watch was interrupted. What was read before is worth nothing.
  void gap() {
    tell("gap");
    store_.watch();
    machine_.begin();
    applied_.reset();
    read_at_.reset();
  }

  void check() const {
    if (!applied_) {
      demand(!machine_.knows(0), "before the snapshot nothing is known");
      return;
    }
    demand(machine_.knows(*applied_) && !machine_.knows(*applied_ + 1), "it is known what is known");
    const auto line = known();
    demand(machine_.size() == line.size(), "all who stand are there");
    for (const auto* key : participants) {
      const auto place = standing(line, key);
      demand(machine_.since(key) == place.value_or(0), "who stands is there, and nobody else");
      if (!place) continue;
      demand(machine_.stands(key, *place), "each stands as he came");
      demand(!machine_.stands(key, *place - 1), "an older place is another one");
      demand(machine_.is_first(key) == (front(line) == key), "the first is he who came first");
    }
    for (const auto* key : others) demand(machine_.since(key) == 0, "nobody else stands");
  }

  /// What the machine should know.
  [[nodiscard]] line known() const {
    line out;
    if (!applied_) return out;
    for (const auto& [key, each] : store_.at(*applied_))
      if (is_participant(key)) out.emplace(each.create_revision, key);
    return out;
  }

  static std::optional<revision> standing(const line& in, const std::string& key) {
    for (const auto& [created, each] : in)
      if (each == key) return created;
    return std::nullopt;
  }

  static std::string front(const line& of) { return of.empty() ? "" : of.begin()->second; }

  program& input_;
  line_machine machine_{line_grammar{"a"}};
  store store_;
  std::optional<revision> applied_;  // nothing: no snapshot yet
  std::optional<revision> read_at_;  // a listing is on its way
};

}  // namespace
}  // namespace conclave::test

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using namespace conclave::test;
  program input{bytes, size};
  line_run run{input};
  while (input.more()) run.step();
  return 0;
}
