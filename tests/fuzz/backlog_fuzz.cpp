// SPDX-License-Identifier: BSL-1.0

// The backlog's machine beside a store: the input is the order in which items are queued and taken, events arrive,
// and listings are begun, read and answered. The window must be the oldest items that the store held at the revision
// that the machine has applied.

#include <conclave/detail/pattern/backlog_machine.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fuzz/fuzzing.hpp"
#include "fuzz/store.hpp"

namespace conclave::test {
namespace {

using detail::pattern::backlog_grammar;
using detail::pattern::backlog_machine;
using order = backlog_grammar::order;

constexpr const char* others[] = {"q/", "q/x", "q/12x"};

class backlog_run {
public:
  backlog_run(program& input, order sorted)
      : input_{input},
        sorted_{sorted},
        most_items_{1 + input.below(6)},
        most_bytes_{input.below(16)},
        machine_{backlog_grammar{"q", sorted}, most_items_, most_bytes_} {}

  void step() {
    switch (input_.below(8)) {
      case 0:
      case 1:
      case 2:
        write();
        break;
      case 3:
      case 4:
        tell("events");
        machine_.events(store_.tell(1 + input_.below(4), 0));  // the watch hub drops what comes twice
        break;
      case 5:
      case 6:
        if (input_.one_in(3))
          claim();
        else
          list();
        break;
      default:
        if (!input_.one_in(4)) break;
        tell("gap");
        store_.watch();
        machine_.forget();
        worthless_ = true;
        break;
    }
    check();
  }

private:
  struct item {
    revision rank = 0;  // zero where the keys alone decide
    std::string key;
    revision mod_revision = 0;
    std::string value;
  };

  [[nodiscard]] std::string some_key() {
    if (input_.one_in(6)) return input_.among(others);
    const auto number = input_.below(10);
    if (sorted_ == order::by_commit) return "q/" + std::string(1, static_cast<char>('0' + number));
    return "q/0000" + std::to_string(number % 2) + "/000000000000000" + std::to_string(number);
  }

  [[nodiscard]] bool is_item(const std::string& key) const {
    return std::find(std::begin(others), std::end(others), key) == std::end(others);
  }

  void write() {
    std::vector<std::string> puts;
    std::vector<std::string> removals;
    for (auto left = 1 + input_.below(3); left != 0; --left)
      (input_.one_in(3) ? removals : puts).push_back(some_key());
    store_.write(puts, removals, std::string(input_.below(6), 'v'));
  }

  /// Begins, reads or answers a listing: other things happen in between.
  void list() {
    if (!reading_) {
      tell("a listing is begun");
      machine_.begin();
      reading_ = true;
      worthless_ = false;
    } else if (!answer_) {
      read();
    } else {
      tell("a listing is there");
      const bool useful = machine_.snapshot(answer_->keys, answer_->more, answer_->at, answer_->foreign);
      demand(useful == !worthless_, "a listing from before a gap is worth nothing, and only such a one");
      demand(!useful || machine_.live(), "after a listing it is known what there is");
      reading_ = false;
      answer_.reset();
    }
  }

  /// The first page, or everything if nothing in that page is sure to be among the first.
  void read() {
    listing out;
    out.at = store_.now();
    for (const auto& [key, each] : store_.at(out.at)) out.keys.push_back(each);
    if (sorted_ == order::by_commit) {
      const bool backwards = input_.one_in(2);  // the order within a revision is the server's business
      std::sort(out.keys.begin(), out.keys.end(), [backwards](const key_value& a, const key_value& b) {
        if (a.mod_revision != b.mod_revision) return a.mod_revision < b.mod_revision;
        return backwards ? b.key < a.key : a.key < b.key;
      });
    }
    auto page = out.keys;
    page.resize(std::min(page.size(), most_items_));
    const bool sure = std::any_of(page.begin(), page.end(), [&](const key_value& each) {
      return is_item(each.key) && (sorted_ == order::by_key || each.mod_revision != page.back().mod_revision);
    });
    out.more = page.size() < out.keys.size() && sure;
    if (out.more) {
      out.keys = std::move(page);
    } else if (page.size() < out.keys.size()) {
      out.foreign = std::erase_if(out.keys, [this](const key_value& each) { return !is_item(each.key); });
    }
    for (auto& each : out.keys) each.value.clear();
    answer_ = std::move(out);
  }

  /// What is unchanged is deleted; what is not was taken by others.
  void claim() {
    if (!machine_.live()) return;
    tell("claim");
    std::vector<std::string> won;
    const auto items = machine_.first(1 + input_.below(3), 3);
    const auto& content = store_.at(store_.now());
    for (const auto& each : items) {
      const auto found = content.find(each.key);
      if (found != content.end() && found->second.mod_revision == each.mod_revision) won.push_back(each.key);
    }
    store_.write({}, won, "");
    for (const auto& each : items) {
      machine_.taken(each.key, each.mod_revision);
      taken_.emplace(each.key, each.mod_revision);
    }
  }

  void check() {
    demand(machine_.size() <= most_items_, "there are no more items than there may be");
    demand(machine_.value_bytes() <= most_bytes_, "values take no more room than they may");
    demand(machine_.empty() == (machine_.size() == 0), "empty is empty");
    if (!machine_.live()) return;
    demand(machine_.applied() >= store_.told(), "what was told is applied");
    const auto expected = items_at(machine_.applied());
    const auto window = machine_.first(machine_.size(), machine_.size());
    demand(window.size() == machine_.size() && window.size() <= expected.size(),
           "the window is of what there is");
    demand(!machine_.complete() || window.size() == expected.size(), "a complete window is complete");
    std::size_t bytes = 0;
    std::size_t unknown = 0;
    for (std::size_t i = 0; i < window.size(); ++i) {
      demand(window[i].key == expected[i].key && window[i].mod_revision == expected[i].mod_revision,
             "the window shows the oldest items, in order");
      if (window[i].value) {
        demand(*window[i].value == expected[i].value, "a value is that of its item");
        bytes += window[i].value->size();
      } else {
        ++unknown;
      }
    }
    demand(machine_.value_bytes() == bytes, "the values are counted");
    if (unknown != 0) {
      const auto known = machine_.first(window.size(), unknown - 1);
      demand(known.size() < window.size() && !window[known.size()].value, "no more is asked for than may be");
    }
  }

  [[nodiscard]] std::vector<item> items_at(revision when) const {
    std::vector<item> out;
    for (const auto& [key, each] : store_.at(when)) {
      if (!is_item(key) || taken_.contains({key, each.mod_revision})) continue;
      out.push_back(
          {sorted_ == order::by_commit ? each.mod_revision : 0, key, each.mod_revision, each.value});
    }
    std::sort(out.begin(), out.end(),
              [](const item& a, const item& b) { return std::tie(a.rank, a.key) < std::tie(b.rank, b.key); });
    return out;
  }

  struct listing {
    std::vector<key_value> keys;
    revision at = 0;
    std::size_t foreign = 0;
    bool more = false;
  };

  program& input_;
  order sorted_;
  std::size_t most_items_;
  std::size_t most_bytes_;
  backlog_machine machine_;
  store store_;
  std::set<std::pair<std::string, revision>> taken_;
  std::optional<listing> answer_;
  bool reading_ = false;
  bool worthless_ = false;
};

}  // namespace
}  // namespace conclave::test

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using namespace conclave::test;
  program input{bytes, size};
  const auto sorted = input.one_in(2) ? order::by_key : order::by_commit;
  backlog_run run{input, sorted};
  while (input.more()) run.step();
  return 0;
}
