// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/testing/etcd_server.hpp>
#include <conclave/testing/peer_links.hpp>
#include <conclave/version.hpp>

namespace conclave::inline CONCLAVE_ABI::testing {

/// How a private cluster is started.
struct etcd_cluster_options {
  /// How many members; an even number bears no more failures than the odd one below it.
  std::size_t members{3};
  /// The etcd program; empty: the environment variable CONCLAVE_ETCD, else `etcd` on PATH.
  std::string binary{};
  std::chrono::milliseconds heartbeat_interval{20};
  /// How long a member hears nothing from a leader before it wants to be one: between one and two of these. At
  /// least five heartbeats. The shortest lease that etcd grants is one and a half of it, at least 1 s.
  std::chrono::milliseconds election_timeout{200};
  /// Added to the command line of each member as they are.
  std::vector<std::string> extra_arguments{};
  /// How long the start of the cluster, or of a member, may take.
  std::chrono::milliseconds start_timeout{std::chrono::seconds{60}};
};

/// A real, private etcd cluster: its members are child processes on free ports of 127.0.0.1 with their data in
/// a temporary folder. It needs no privileges and touches nothing of an etcd that the machine may run.
///
/// ```
/// conclave::testing::etcd_cluster cluster;        // three members; returns when all answer
/// conclave::client client{io_context, cluster.endpoints()};
/// const auto old = cluster.wait_for_leader();
/// cluster.isolate(old);                           // serves its clients, but hears no other member
/// const auto other = cluster.wait_for_leader();   // != old
/// cluster.heal(old);
/// cluster.wait_healthy();
/// ```
///
/// Members are numbered from 0. A number that no member has is a std::out_of_range. The functions block,
/// briefly. The destructor kills the processes and removes the folder; should this program itself be killed,
/// the kernel kills the members (the folder then stays). Distinct objects may be used from distinct threads;
/// one object by one thread at a time. Linux only.
class etcd_cluster {
public:
  using milliseconds = std::chrono::milliseconds;

  /// Starts the members and returns when there is a leader and all of them answer. Throws std::runtime_error,
  /// with the ends of the members' logs in its text, when that does not happen in time; std::system_error when
  /// there is no etcd; std::invalid_argument for a cluster of no members.
  explicit etcd_cluster(etcd_cluster_options options = {})
      : options_{std::move(options)}, folder_{"conclave-cluster-"} {
    if (options_.members == 0) throw std::invalid_argument{"etcd_cluster_options::members is 0"};
    options_.binary = detail::etcd_program(std::move(options_.binary));
    constexpr int attempts = 5;
    for (int attempt = 1;; ++attempt) {
      try {
        found();
        return;
      } catch (const detail::address_in_use&) {
        // A stranger took a port between our look and etcd's bind: others.
        members_.clear();
        if (attempt == attempts) throw;
      }
    }
  }

  /// Kills the members and removes their folder.
  ~etcd_cluster() = default;

  etcd_cluster(etcd_cluster&&) noexcept = default;
  etcd_cluster& operator=(etcd_cluster&&) = delete;

  /// How many members the cluster has, running or not.
  std::size_t size() const { return members_.size(); }

  /// The endpoints of all members, with commas between: "http://127.0.0.1:PORT,http://127.0.0.1:PORT,...".
  std::string endpoints() const {
    std::string result;
    for (std::size_t i = 0; i < size(); ++i) result += (i == 0 ? "" : ",") + endpoint(i);
    return result;
  }

  /// "http://127.0.0.1:PORT", the same for the whole life of the object.
  std::string endpoint(std::size_t member) const {
    return "http://127.0.0.1:" + std::to_string(port(member));
  }

  /// The member's port for clients.
  std::uint16_t port(std::size_t member) const { return members_.at(member).client.number(); }

  /// The member's process id, or -1 while it is killed.
  pid_t pid(std::size_t member) const { return members_.at(member).process.pid(); }

  /// The temporary folder.
  const std::filesystem::path& folder() const { return folder_.path(); }

  /// Whether the member's process exists, paused or not.
  bool running(std::size_t member) { return members_.at(member).process.running(); }

  /// Ends the member at once (SIGKILL). Nothing happens if it does not run.
  void kill(std::size_t member) {
    auto& it = members_.at(member);
    links_->set_process(member, -1);
    it.process.kill();
    it.paused = false;
  }

  /// Freezes the member (SIGSTOP): connections stay open and are accepted, nothing is answered. Throws
  /// std::runtime_error if it does not run.
  void pause(std::size_t member) {
    auto& it = members_.at(member);
    it.process.pause();
    it.paused = true;
  }

  /// Ends a pause.
  void resume(std::size_t member) {
    auto& it = members_.at(member);
    it.process.resume();
    it.paused = false;
  }

  /// Starts the member again with its data on its ports. Kills it first if it runs. Returns when it takes
  /// connections; when it answers, `wait_healthy` knows, for without a majority it cannot. Throws
  /// std::runtime_error, with the end of its log, if it ends or that takes longer than the start timeout. It
  /// does not end an isolation.
  void restart(std::size_t member) {
    kill(member);
    const auto deadline = std::chrono::steady_clock::now() + options_.start_timeout;
    for (;;) {
      launch(member);
      try {
        wait_until_listens(member, deadline);
        return;
      } catch (const detail::address_in_use&) {
        if (std::chrono::steady_clock::now() >= deadline) throw;
        ::poll(nullptr, 0, 20);
      }
    }
  }

  /// Cuts the member off from the others in both directions, while it goes on serving its clients: their
  /// connections are closed, and new ones are closed as soon as they are made, until `heal`. The cut is there
  /// when this returns; the members notice it in their own time.
  void isolate(std::size_t member) { links_->isolate(member); }

  /// Ends the isolation. The members try to connect to each other about ten times a second.
  void heal(std::size_t member) { links_->heal(member); }

  /// The leader: the member that calls itself so and that a majority, itself included, follows, with all of them
  /// having applied its term's first entry. Only members count that run and are neither paused nor isolated. Nothing while there is none.
  std::optional<std::size_t> leader() {
    std::vector<std::pair<std::size_t, view>> views;
    for (std::size_t i = 0; i < size(); ++i) {
      if (!reachable(i)) continue;
      if (const auto seen = view_of(i)) views.emplace_back(i, *seen);
    }
    for (const auto& [member, own] : views) {
      if (own.leader.empty() || own.leader != own.member) continue;
      const auto followers = std::count_if(views.begin(), views.end(), [&leading = own](const auto& each) {
        return each.second.leader == leading.leader && each.second.term == leading.term;
      });
      if (static_cast<std::size_t>(followers) > size() / 2) return member;
    }
    return std::nullopt;
  }

  /// Waits until there is a leader and returns it. Throws std::runtime_error when there is none in time.
  std::size_t wait_for_leader(milliseconds timeout = std::chrono::seconds{30}) {
    std::optional<std::size_t> found;
    wait("no leader", timeout, [&] { return (found = leader()).has_value(); });
    return *found;
  }

  /// Waits until each member that runs and is neither paused nor isolated answers a linearizable read. Throws
  /// std::runtime_error when one does not in time, or if there is no such member.
  void wait_healthy(milliseconds timeout = std::chrono::seconds{30}) {
    wait("not healthy", timeout, [this] {
      std::size_t asked = 0;
      for (std::size_t i = 0; i < size(); ++i) {
        if (!reachable(i)) continue;
        ++asked;
        if (!detail::etcd_healthy(port(i), std::chrono::seconds{2})) return false;
      }
      return asked > 0;
    });
  }

  /// Makes the member the leader, as an operator would, and returns when it is. Throws std::runtime_error when
  /// it is not in time.
  void move_leader(std::size_t member, milliseconds timeout = std::chrono::seconds{30}) {
    wait("member " + std::to_string(member) + " not leader", timeout, [&] {
      const auto now = leader();
      if (now == member) return true;
      const auto wanted = now ? view_of(member) : std::nullopt;
      if (!wanted) return false;
      try {  // returns when the target leads, or has failed to; how it went is seen in the next round
        http_request(port(*now), "/v3/maintenance/transfer-leadership",
                     R"({"targetID":")" + wanted->member + "\"}", std::chrono::seconds{2});
      } catch (const std::system_error&) {
      }
      return leader() == member;
    });
  }

  /// A value from the member's /metrics; see `etcd_server::metric`.
  double metric(std::size_t member, std::string_view name) const {
    return detail::etcd_metric(http_request(port(member), "/metrics", {}, std::chrono::seconds{5}).body,
                               name);
  }

  /// The last lines of the member's log.
  std::string log_tail(std::size_t member, std::size_t lines = 40) const {
    return file_tail(log_file(members_.at(member)), lines);
  }

private:
  struct member_state {
    std::string name;
    reserved_port client{};
    reserved_port peer{};
    bool paused{false};
    std::uintmax_t log_start{0};  // what the log held when the process was started
    child_process process{};
  };

  // What a member thinks of the cluster.
  struct view {
    std::string member;  // its own id
    std::string leader;  // the id of the leader; empty: none
    std::string term;    // that of the last entry which it has applied
  };

  std::filesystem::path log_file(const member_state& member) const {
    return folder_.path() / (member.name + ".log");
  }

  // All members with new ports and no data.
  void found() {
    const auto deadline = std::chrono::steady_clock::now() + options_.start_timeout;
    std::vector<std::uint16_t> targets;
    for (std::size_t i = 0; i < options_.members; ++i) {
      members_.push_back({.name = "member-" + std::to_string(i)});
      targets.push_back(members_.back().peer.number());
      std::filesystem::remove_all(folder_.path() / members_.back().name);
    }
    links_ = std::make_unique<peer_links>(targets);
    // A new member first asks the others whether it has been there before, and waits a second for those that
    // listen, but are at that question themselves. Nobody to ask is an answer at once. A member that is past it
    // has a log on disk.
    for (std::size_t i = 0; i < size(); ++i) links_->isolate(i);
    for (std::size_t i = 0; i < size(); ++i) launch(i);
    for (std::size_t i = 0; i < size(); ++i) {
      const auto log = folder_.path() / members_[i].name / "member" / "wal";
      wait_until(i, deadline, "begin", [&] { return std::filesystem::exists(log); });
    }
    for (std::size_t i = 0; i < size(); ++i) links_->heal(i);
    while (!leader() || !all_healthy()) {
      for (std::size_t i = 0; i < size(); ++i) throw_if_ended(i);
      if (std::chrono::steady_clock::now() >= deadline) {
        throw std::runtime_error{
            failure("not up after " + std::to_string(options_.start_timeout.count()) + " ms")};
      }
      ::poll(nullptr, 0, 10);
    }
  }

  void launch(std::size_t number) {
    auto& it = members_[number];
    const std::string advertised = peer_url(number);
    std::string all;
    for (std::size_t i = 0; i < size(); ++i)
      all += (i == 0 ? "" : ",") + members_[i].name + "=" + peer_url(i);
    child_options child = detail::etcd_child({options_.binary,
                                              "--name",
                                              it.name,
                                              "--data-dir",
                                              (folder_.path() / it.name).string(),
                                              "--listen-client-urls",
                                              endpoint(number),
                                              "--advertise-client-urls",
                                              endpoint(number),
                                              "--listen-peer-urls",
                                              "http://127.0.0.1:" + std::to_string(it.peer.number()),
                                              "--initial-advertise-peer-urls",
                                              advertised,
                                              "--initial-cluster",
                                              all,
                                              "--initial-cluster-token",
                                              folder_.path().filename().string(),
                                              "--heartbeat-interval",
                                              std::to_string(options_.heartbeat_interval.count()),
                                              "--election-timeout",
                                              std::to_string(options_.election_timeout.count()),
                                              "--logger",
                                              "zap",
                                              "--log-outputs",
                                              "stderr"},
                                             log_file(it));
    child.command.insert(child.command.end(), options_.extra_arguments.begin(),
                         options_.extra_arguments.end());
    it.log_start = detail::log_size(log_file(it));
    it.process = child_process{child};
    it.paused = false;
    links_->set_process(number, it.process.pid());
  }

  // The others dial the relay.
  std::string peer_url(std::size_t number) const {
    return "http://127.0.0.1:" + std::to_string(links_->port(number));
  }

  // Looks whose socket it is: a mere connection might reach a stranger on a port that he took meanwhile.
  void wait_until_listens(std::size_t number, std::chrono::steady_clock::time_point deadline) {
    wait_until(number, deadline, "listen",
               [&] { return detail::owns_socket(pid(number), detail::socket_inode(port(number), 0)); });
  }

  template <class Condition>
  void wait_until(std::size_t number, std::chrono::steady_clock::time_point deadline, const std::string& what,
                  Condition condition) {
    while (!condition()) {
      throw_if_ended(number);
      if (std::chrono::steady_clock::now() >= deadline) {
        throw std::runtime_error{failure("member " + std::to_string(number) + " does not " + what)};
      }
      ::poll(nullptr, 0, 5);
    }
  }

  void throw_if_ended(std::size_t number) {
    auto& it = members_[number];
    if (it.process.running()) return;
    links_->set_process(number, -1);
    const std::string what = "member " + std::to_string(number) + " ended with " +
                             to_string(it.process.status().value_or(exit_status{}));
    if (detail::says_address_in_use(log_file(it), it.log_start)) throw detail::address_in_use{failure(what)};
    throw std::runtime_error{failure(what)};
  }

  bool reachable(std::size_t number) {
    auto& it = members_[number];
    return !it.paused && it.process.running() && (size() == 1 || !links_->isolated(number));
  }

  bool all_healthy() const {
    for (const auto& each : members_)
      if (!detail::etcd_healthy(each.client.number(), std::chrono::seconds{2})) return false;
    return true;
  }

  std::optional<view> view_of(std::size_t number) const {
    try {
      const auto answer = http_request(port(number), "/v3/maintenance/status", "{}", std::chrono::seconds{1});
      if (answer.status != 200) return std::nullopt;
      return view{.member = json_number(answer.body, "member_id"),
                  .leader = json_number(answer.body, "leader"),
                  .term = json_number(answer.body, "raftTerm")};
    } catch (const std::system_error&) {
      return std::nullopt;
    }
  }

  // Of "name":"123", as etcd's gateway writes numbers of 64 bits: the digits; a zero is left out.
  static std::string json_number(const std::string& text, const std::string& name) {
    const std::string before = '"' + name + "\":\"";
    const auto found = text.find(before);
    if (found == std::string::npos) return {};
    const auto begin = found + before.size();
    const std::string digits = text.substr(begin, text.find('"', begin) - begin);
    return digits == "0" ? std::string{} : digits;
  }

  template <class Condition>
  void wait(const std::string& lack, milliseconds timeout, Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (!condition()) {
      if (std::chrono::steady_clock::now() >= deadline) {
        throw std::runtime_error{failure(lack + " after " + std::to_string(timeout.count()) + " ms")};
      }
      ::poll(nullptr, 0, 10);
    }
  }

  std::string failure(const std::string& what) const {
    std::string text = "etcd cluster: " + what + "; the ends of its members' logs:";
    for (std::size_t i = 0; i < size(); ++i) text += "\n" + members_[i].name + ":\n" + log_tail(i);
    return text;
  }

  etcd_cluster_options options_;
  temporary_folder folder_;
  std::unique_ptr<peer_links> links_;
  std::vector<member_state> members_;  // last: they end before their links and their folder go
};

}  // namespace conclave::testing
