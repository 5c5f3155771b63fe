#pragma once

// The smallest test frame: TEST(name) { CHECK(condition); }, run by test_main.cpp.

#include <sstream>
#include <string>
#include <vector>

#include "emu/api.h"

namespace selftest {

struct Test {
  char const* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline std::vector<std::string>& failures() {
  static std::vector<std::string> all;
  return all;
}

struct Registration {
  Registration(char const* name, void (*run)()) { tests().push_back({name, run}); }
};

inline void fail_at(char const* file, int line, std::string const& what) {
  failures().push_back(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

template <class A, class B>
void check_equal(char const* file, int line, char const* text, A const& actual, B const& expected) {
  if (actual == expected) return;
  std::ostringstream message;
  message << text << " is " << actual << ", expected " << expected;
  fail_at(file, line, message.str());
}

inline bool contains(std::string const& text, std::string const& part) {
  return text.find(part) != std::string::npos;
}

// Options for the time of a test.
class WithOptions {
 public:
  explicit WithOptions(emu::Options const& options) : before_(emu::options()) {
    emu::set_options(options);
  }
  ~WithOptions() { emu::set_options(before_); }

 private:
  emu::Options before_;
};

}  // namespace selftest

#define TEST(name)                                                             \
  static void test_##name();                                                   \
  static selftest::Registration const registration_##name{#name, test_##name}; \
  static void test_##name()

#define CHECK(condition) ((condition) ? void() : selftest::fail_at(__FILE__, __LINE__, #condition))
#define CHECK_EQUAL(actual, expected) \
  selftest::check_equal(__FILE__, __LINE__, #actual, actual, expected)
#define CHECK_CONTAINS(text, part) \
  (selftest::contains(text, part)  \
       ? void()                    \
       : selftest::fail_at(__FILE__, __LINE__, "no \"" + std::string(part) + "\" in: " + (text)))
