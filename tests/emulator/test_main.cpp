// Runs all tests, or those whose name contains the argument.

#include <cstdio>
#include <exception>

#include "test_frame.h"

int main(int argc, char** argv) {
  std::string const wanted = argc > 1 ? argv[1] : "";
  int passed = 0, failed = 0;
  for (selftest::Test const& test : selftest::tests()) {
    if (!selftest::contains(test.name, wanted)) continue;
    selftest::failures().clear();
    try {
      test.run();
    } catch (std::exception const& error) {
      selftest::failures().push_back(error.what());
    }
    bool const good = selftest::failures().empty();
    ++(good ? passed : failed);
    if (!good) std::printf("FAILED %s\n", test.name);
    for (std::string const& failure : selftest::failures()) std::printf("  %s\n", failure.c_str());
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
