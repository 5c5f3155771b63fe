// Runs CTAs on one SM. Standard input: what program.h reads. Standard output: JSON.

#include "simulator.h"

namespace {

void print(sm::Result const& result) {
  auto const number = [](int64_t value) { return std::to_string(value); };
  std::string text = "{\"cycles\": " + number(result.cycles) +
                     ", \"issued\": " + number(result.issued) +
                     ", \"register_reads\": " + number(result.register_reads) +
                     ", \"shared_busy\": " + number(result.shared_busy) + ", \"busy\": {";
  for (int unit = 0; unit < sm::kUnits; ++unit) {
    text += std::string(unit == 0 ? "" : ", ") + "\"" + sm::kUnitNames[unit] +
            "\": " + number(result.busy[unit]);
  }
  text += "}, \"waits\": {";
  for (int reason = 0; reason < sm::kReasons; ++reason) {
    text += std::string(reason == 0 ? "" : ", ") + "\"" + sm::reason_name(reason) +
            "\": " + number(result.waits[reason]);
  }
  text += "}, \"ctas\": [";
  char const* separator = "";
  for (auto const& [begin, end] : result.cta_times) {
    text += separator + ("[" + number(begin) + ", " + number(end) + "]");
    separator = ", ";
  }
  std::cout << text << "]}\n";
}

}  // namespace

int main() {
  sm::Program const program = sm::read_program(std::cin);
  print(sm::Simulator(program).run());
}
