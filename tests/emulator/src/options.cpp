// The text form of the options.

#include <span>
#include <sstream>
#include <stdexcept>

#include "emu/api.h"

namespace emu {

namespace {

struct Choice {
  char const* name;
  int value;
};

constexpr Choice kOrders[] = {{"random", 1}, {"linear", 0}};
constexpr Choice kSwitch[] = {{"on", 1}, {"off", 0}};
constexpr Choice kAsync[] = {{"late", int(AsyncMode::kLate)},
                             {"early", int(AsyncMode::kEarly)},
                             {"random", int(AsyncMode::kRandom)}};
constexpr Choice kDevices[] = {{"sm80", int(Device::kSm80)}, {"sm86", int(Device::kSm86)}};

[[noreturn]] void reject(std::string const& item) {
  throw std::invalid_argument(
      "emulator options: cannot read '" + item +
      "'; known are seed=N, order=random|linear, ctas_order=random|linear, "
      "async=late|early|random, poison=on|off, races=on|off, ctas=N, device=sm80|sm86");
}

int choose(std::string const& item, std::string const& value, std::span<Choice const> choices) {
  for (Choice const& choice : choices) {
    if (value == choice.name) return choice.value;
  }
  reject(item);
}

char const* name_of(int value, std::span<Choice const> choices) {
  for (Choice const& choice : choices) {
    if (value == choice.value) return choice.name;
  }
  return "";
}

uint64_t number(std::string const& item, std::string const& value) {
  constexpr size_t kMaxDigits = 18;
  bool const digits = value.find_first_not_of("0123456789") == std::string::npos;
  if (value.empty() || value.size() > kMaxDigits || !digits) reject(item);
  return std::stoull(value);
}

int positive(std::string const& item, std::string const& value) {
  constexpr uint64_t kMax = 1 << 16;
  uint64_t const n = number(item, value);
  if (n < 1 || n > kMax) reject(item);
  return int(n);
}

}  // namespace

Options parse_options(std::string const& text) {
  Options options;
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    size_t const equals = item.find('=');
    if (equals == std::string::npos) reject(item);
    std::string const key = item.substr(0, equals), value = item.substr(equals + 1);
    if (key == "seed") {
      options.seed = number(item, value);
    } else if (key == "order") {
      options.random_order = choose(item, value, kOrders);
    } else if (key == "ctas_order") {
      options.linear_ctas = !choose(item, value, kOrders);
    } else if (key == "async") {
      options.async = AsyncMode(choose(item, value, kAsync));
    } else if (key == "poison") {
      options.poison = choose(item, value, kSwitch);
    } else if (key == "races") {
      options.races = choose(item, value, kSwitch);
    } else if (key == "ctas") {
      options.ctas_in_flight = positive(item, value);
    } else if (key == "device") {
      options.device = Device(choose(item, value, kDevices));
    } else {
      reject(item);
    }
  }
  return options;
}

std::string to_string(Options const& o) {
  std::ostringstream text;
  text << "seed=" << o.seed << ",order=" << name_of(o.random_order, kOrders)
       << ",ctas_order=" << name_of(!o.linear_ctas, kOrders)
       << ",async=" << name_of(int(o.async), kAsync) << ",poison=" << name_of(o.poison, kSwitch)
       << ",races=" << name_of(o.races, kSwitch) << ",ctas=" << o.ctas_in_flight
       << ",device=" << name_of(int(o.device), kDevices);
  return text.str();
}

}  // namespace emu
