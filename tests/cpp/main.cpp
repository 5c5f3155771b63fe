#include "check.h"

int main() {
  for (auto const& test : fa2::testing::tests()) {
    int const before = fa2::testing::failures();
    test.body();
    bool const passed = fa2::testing::failures() == before;
    std::cout << (passed ? "passed " : "FAILED ") << test.name << '\n';
  }
  int const failures = fa2::testing::failures();
  std::cout << fa2::testing::tests().size() << " tests, " << failures << " failed expectations\n";
  return failures == 0 ? 0 : 1;
}
