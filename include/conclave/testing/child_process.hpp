// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <conclave/version.hpp>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

extern char** environ;  // NOLINT(readability-redundant-declaration): POSIX leaves it to the program

namespace conclave::inline CONCLAVE_ABI::testing {

/// How a child process is started.
struct child_options {
  /// The program (a path, or a name which is looked up on PATH) and its arguments.
  std::vector<std::string> command{};
  /// Changes to the inherited environment: a value sets, `nullopt` removes.
  std::map<std::string, std::optional<std::string>> environment{};
  /// Inherited variables whose names begin with one of these are removed (before `environment` is applied).
  std::vector<std::string> drop_environment_prefixes{};
  /// Standard output and error are appended to this file; empty: they are inherited.
  std::filesystem::path output_file{};
  /// The folder in which it starts; empty: ours. A relative path of the program or
  /// of `output_file` is meant from ours all the same; the arguments are the program's.
  std::filesystem::path working_folder{};
  /// Standard input is inherited and the child stays in our process group, as a shell's foreground command
  /// does. Otherwise it reads nothing and the terminal's Ctrl-C reaches only us.
  bool foreground{false};
};

/// How a child process ended.
struct exit_status {
  int code{0};    ///< The exit code, if `signal` is 0.
  int signal{0};  ///< The signal that killed it, or 0.

  friend bool operator==(const exit_status&, const exit_status&) = default;
};

/// "exit code 3" or "signal 9".
inline std::string to_string(const exit_status& status) {
  return status.signal != 0 ? "signal " + std::to_string(status.signal)
                            : "exit code " + std::to_string(status.code);
}

namespace detail {

// A parent-death signal is sent when the *thread* that forked ends. One thread which lives as long as the
// process therefore does all the forking, whatever thread asks for a child. It is never joined nor destroyed.
class spawner {
public:
  static spawner& instance() {
    static auto* const only = new spawner;
    return *only;
  }

  pid_t run(std::function<pid_t()> job) {
    std::packaged_task<pid_t()> task{std::move(job)};
    auto result = task.get_future();
    {
      const std::lock_guard lock{mutex_};
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
    return result.get();
  }

private:
  spawner() {
    // The program's signals are for the program's threads: this one starts with all of them blocked.
    sigset_t all;
    sigset_t before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread{[this] { serve(); }}.detach();
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  [[noreturn]] void serve() {
    for (;;) {
      std::unique_lock lock{mutex_};
      wake_.wait(lock, [this] { return !tasks_.empty(); });
      auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::packaged_task<pid_t()>> tasks_;
};

/// What the child needs between fork and exec, made ready before the fork: a multi-threaded parent may have
/// left any lock taken, so that the child may neither allocate nor call anything but system calls.
struct spawn_plan {
  const char* path;
  char* const* arguments;
  char* const* environment;
  const char* folder;  // empty: inherited
  int input;           // -1: inherited
  int output;          // -1: inherited
  int error_pipe;
  int open_files;
  pid_t parent;
  bool own_group;
};

[[noreturn]] inline void become_child(const spawn_plan& plan) {
  const auto fail = [&plan] {
    const int error = errno;
    [[maybe_unused]] const auto written = ::write(plan.error_pipe, &error, sizeof error);
    ::_exit(127);
  };
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != plan.parent) ::_exit(127);  // the parent died before the line above
  if (plan.own_group) ::setpgid(0, 0);
  for (int number = 1; number < NSIG; ++number) {
    struct sigaction action {};
    action.sa_handler = SIG_DFL;
    ::sigaction(number, &action, nullptr);
  }
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (plan.input >= 0 && ::dup2(plan.input, STDIN_FILENO) < 0) fail();
  if (plan.output >= 0 &&
      (::dup2(plan.output, STDOUT_FILENO) < 0 || ::dup2(plan.output, STDERR_FILENO) < 0)) {
    fail();
  }
  if (*plan.folder != '\0' && ::chdir(plan.folder) != 0) fail();
  // No socket or file of ours lives on in the child, not even one that was opened without O_CLOEXEC.
  constexpr unsigned close_range_cloexec = 4;
  if (::syscall(SYS_close_range, 3U, ~0U, close_range_cloexec) != 0) {
    for (int fd = 3; fd < plan.open_files; ++fd) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  ::execve(plan.path, plan.arguments, plan.environment);
  fail();
  ::_exit(127);
}

class unique_fd {
public:
  unique_fd() = default;
  explicit unique_fd(int fd) : fd_{fd} {}
  unique_fd(unique_fd&& other) noexcept : fd_{std::exchange(other.fd_, -1)} {}
  unique_fd& operator=(unique_fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~unique_fd() { reset(); }

  int get() const { return fd_; }
  void reset() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

private:
  int fd_{-1};
};

inline unique_fd checked_fd(int fd, const std::string& what) {
  if (fd < 0) throw std::system_error{errno, std::generic_category(), what};
  return unique_fd{fd};
}

inline std::vector<std::string> child_environment(const child_options& options) {
  std::vector<std::string> result;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text{*entry};
    const std::string name{text.substr(0, text.find('='))};
    const auto dropped =
        std::any_of(options.drop_environment_prefixes.begin(), options.drop_environment_prefixes.end(),
                    [&name](const std::string& prefix) { return name.starts_with(prefix); });
    if (!dropped && !options.environment.contains(name)) result.emplace_back(text);
  }
  for (const auto& [name, value] : options.environment) {
    if (value) result.push_back(name + "=" + *value);
  }
  return result;
}

inline std::vector<char*> pointers_to(std::vector<std::string>& strings) {
  std::vector<char*> result;
  result.reserve(strings.size() + 1);
  for (auto& string : strings) result.push_back(string.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace detail

/// The path of a program: `name` itself if it contains a slash, else the first match on PATH; empty if none.
inline std::filesystem::path find_program(const std::string& name) {
  if (name.empty()) return {};
  if (name.find('/') != std::string::npos) {
    return ::access(name.c_str(), X_OK) == 0 ? std::filesystem::path{name} : std::filesystem::path{};
  }
  const char* const variable = std::getenv("PATH");
  std::string_view rest{variable != nullptr ? variable : "/usr/local/bin:/usr/bin:/bin"};
  while (true) {
    const auto colon = rest.find(':');
    const std::filesystem::path folder{rest.substr(0, colon)};
    auto candidate = folder / name;
    std::error_code ignored;
    if (::access(candidate.c_str(), X_OK) == 0 && std::filesystem::is_regular_file(candidate, ignored)) {
      return candidate;
    }
    if (colon == std::string_view::npos) return {};
    rest.remove_prefix(colon + 1);
  }
}

/// The last `lines` lines of a text file (at most its last 64 KiB); empty if it cannot be read.
inline std::string file_tail(const std::filesystem::path& file, std::size_t lines) {
  std::ifstream stream{file, std::ios::binary | std::ios::ate};
  if (!stream) return {};
  const std::streamoff size = stream.tellg();
  const std::streamoff start = std::max<std::streamoff>(0, size - 65536);
  stream.seekg(start);
  std::string text(static_cast<std::size_t>(size - start), '\0');
  stream.read(text.data(), size - start);
  text.resize(static_cast<std::size_t>(stream.gcount()));
  auto position = text.size();
  if (position > 0 && text[position - 1] == '\n') --position;
  for (std::size_t line = 0; line < lines && position != std::string::npos && position > 0; ++line) {
    position = text.rfind('\n', position - 1);
  }
  return position == std::string::npos || position == 0 ? text : text.substr(position + 1);
}

/// A new, empty folder under the system's temporary folder; removed with all that is in it by the destructor.
class temporary_folder {
public:
  explicit temporary_folder(const std::string& prefix) {
    std::string pattern = (std::filesystem::temp_directory_path() / (prefix + "XXXXXX")).string();
    if (::mkdtemp(pattern.data()) == nullptr) {
      throw std::system_error{errno, std::generic_category(), "cannot create the folder " + pattern};
    }
    path_ = pattern;
  }
  temporary_folder(temporary_folder&& other) noexcept : path_{std::exchange(other.path_, {})} {}
  temporary_folder& operator=(temporary_folder&& other) noexcept {
    path_.swap(other.path_);
    return *this;
  }
  ~temporary_folder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }

private:
  std::filesystem::path path_;
};

/// A child process that cannot outlive us: it is killed by the destructor, and by the kernel if we are
/// killed. It inherits none of our open files, sockets, signal handlers or blocked signals. Safe to use in a
/// program with threads.
///
/// Linux only. Distinct objects may be used from distinct threads; one object by one thread at a time.
class child_process {
public:
  using milliseconds = std::chrono::milliseconds;

  /// No process.
  child_process() = default;

  /// Starts it. Throws std::system_error if the program is not found or cannot be executed.
  explicit child_process(const child_options& options) { start(options); }

  child_process(child_process&& other) noexcept
      : pid_{std::exchange(other.pid_, -1)}, status_{std::exchange(other.status_, {})} {}

  /// Kills the process that this object had.
  child_process& operator=(child_process&& other) noexcept {
    if (this != &other) {
      kill();
      pid_ = std::exchange(other.pid_, -1);
      status_ = std::exchange(other.status_, {});
    }
    return *this;
  }

  ~child_process() { kill(); }

  /// The process id, or -1 without a living process.
  pid_t pid() const { return pid_; }

  /// Whether it still runs (a paused process does); looks, and so notices an end.
  bool running() { return pid_ > 0 && !wait_for(milliseconds{0}); }

  /// How the last process ended, if it did and somebody looked.
  const std::optional<exit_status>& status() const { return status_; }

  /// Waits until it has ended; nothing when the time is over. An ended process is reaped.
  std::optional<exit_status> wait_for(milliseconds limit) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (pid_ > 0) {
      int raw = 0;
      const pid_t changed = ::waitpid(pid_, &raw, WNOHANG);
      if (changed == pid_) {
        finish(raw);
      } else if (changed < 0 && errno != EINTR) {
        finish(0);  // somebody else reaped it (SIGCHLD ignored): how it ended is unknown
      } else if (std::chrono::steady_clock::now() >= deadline) {
        return std::nullopt;
      } else {
        wait_a_little();
      }
    }
    return status_;
  }

  /// Sends a signal; does nothing without a process.
  void signal(int number) {
    if (pid_ > 0) ::kill(pid_, number);
  }

  /// SIGTERM (to a paused process as well), then SIGKILL when `grace` is over.
  void stop(milliseconds grace = std::chrono::seconds{5}) {
    signal(SIGTERM);
    signal(SIGCONT);
    if (pid_ > 0 && !wait_for(grace)) kill();
  }

  /// SIGKILL, and waits for the end.
  void kill() noexcept {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    int raw = 0;
    pid_t changed = 0;
    do {
      changed = ::waitpid(pid_, &raw, 0);
    } while (changed < 0 && errno == EINTR);
    finish(changed == pid_ ? raw : 0);
  }

  /// SIGSTOP; returns when every thread of the process has stopped.
  void pause() {
    signal(SIGSTOP);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{10};
    while (pid_ > 0) {
      if (state() == 'T') return;
      if (!running()) break;
      if (std::chrono::steady_clock::now() >= deadline)
        throw std::runtime_error{"the process does not stop on SIGSTOP"};
      wait_a_little();
    }
    throw std::runtime_error{"there is no process to pause"};
  }

  /// SIGCONT.
  void resume() { signal(SIGCONT); }

private:
  void start(const child_options& options) {
    if (options.command.empty()) throw std::invalid_argument{"child_options::command is empty"};
    std::filesystem::path program = find_program(options.command.front());
    if (program.empty()) {
      throw std::system_error{ENOENT, std::generic_category(),
                              "cannot execute '" + options.command.front() + "'"};
    }
    if (!options.working_folder.empty()) program = std::filesystem::absolute(program);
    auto arguments = options.command;
    auto environment = detail::child_environment(options);
    const auto argument_pointers = detail::pointers_to(arguments);
    const auto environment_pointers = detail::pointers_to(environment);

    detail::unique_fd input;
    detail::unique_fd output;
    if (!options.foreground)
      input = detail::checked_fd(::open("/dev/null", O_RDONLY | O_CLOEXEC), "/dev/null");
    if (!options.output_file.empty()) {
      output = detail::checked_fd(
          ::open(options.output_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600),
          options.output_file.string());
    }
    int ends[2] = {-1, -1};
    if (::pipe2(ends, O_CLOEXEC) != 0) throw std::system_error{errno, std::generic_category(), "pipe"};
    const detail::unique_fd read_end{ends[0]};
    detail::unique_fd write_end{ends[1]};
    const detail::spawn_plan plan{
        .path = program.c_str(),
        .arguments = argument_pointers.data(),
        .environment = environment_pointers.data(),
        .folder = options.working_folder.c_str(),
        .input = input.get(),
        .output = output.get(),
        .error_pipe = write_end.get(),
        .open_files = static_cast<int>(std::min(::sysconf(_SC_OPEN_MAX), 65536L)),
        .parent = ::getpid(),
        .own_group = !options.foreground,
    };
    const pid_t child = detail::spawner::instance().run([&plan]() -> pid_t {
      const pid_t forked = ::fork();
      if (forked == 0) detail::become_child(plan);
      return forked < 0 ? -errno : forked;
    });
    if (child < 0) throw std::system_error{-child, std::generic_category(), "fork"};
    pid_ = child;
    status_.reset();
    write_end.reset();
    int error = 0;
    ssize_t got = 0;
    do {
      got = ::read(read_end.get(), &error, sizeof error);
    } while (got < 0 && errno == EINTR);
    if (got == static_cast<ssize_t>(sizeof error)) {
      kill();
      throw std::system_error{error, std::generic_category(), "cannot execute '" + program.string() + "'"};
    }
  }

  void finish(int raw) noexcept {
    status_ = WIFSIGNALED(raw) ? exit_status{0, WTERMSIG(raw)} : exit_status{WEXITSTATUS(raw), 0};
    pid_ = -1;
  }

  // The state of the least stopped thread: SIGSTOP reaches a process's threads one after another.
  char state() const {
    namespace fs = std::filesystem;
    char result = '?';
    std::error_code error;
    const fs::path folder = fs::path{"/proc"} / std::to_string(pid_) / "task";
    for (fs::directory_iterator it{folder, error}, end; !error && it != end; it.increment(error)) {
      std::ifstream stream{it->path() / "stat"};
      std::string line;
      std::getline(stream, line);
      const auto name_end = line.rfind(')');  // the name before it may contain anything
      if (name_end == std::string::npos || name_end + 2 >= line.size()) continue;
      result = line[name_end + 2];
      if (result != 'T') return result;
    }
    return result;
  }

  static void wait_a_little() { ::poll(nullptr, 0, 2); }

  pid_t pid_{-1};
  std::optional<exit_status> status_;
};

}  // namespace conclave::testing
