// printf in kernels: nvcc calls vprintf with the values in memory, each at its own alignment.

#include <cstdio>
#include <string>

#include "ptx/warp.h"

namespace emu::ptx {

namespace {

class Values {
 public:
  explicit Values(u8 const* data) : data_(data) {}

  template <class T>
  T next() {
    offset_ = (offset_ + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    T value;
    __builtin_memcpy(&value, data_ + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }

 private:
  u8 const* data_;
  u64 offset_ = 0;
};

template <class T>
void print_one(std::string const& format, T value) {
  std::printf(format.c_str(), value);
}

// One conversion, such as "%8.3f".
void print_value(std::string const& format, Values& values) {
  char const kind = format.back();
  bool const is_long = format.find('l') != std::string::npos;
  switch (kind) {
    case 's': return print_one(format, values.next<char const*>());
    case 'p': return print_one(format, values.next<void const*>());
    case 'c':
    case 'd':
    case 'i':
      return is_long ? print_one(format, values.next<long>())
                     : print_one(format, values.next<int>());
    case 'u':
    case 'x':
    case 'X':
    case 'o':
      return is_long ? print_one(format, values.next<unsigned long>())
                     : print_one(format, values.next<unsigned>());
    default: return print_one(format, values.next<double>());
  }
}

}  // namespace

void print_format(u8* result, u8* format, u8* values) {
  std::string const text = *reinterpret_cast<char const* const*>(format);
  Values given(*reinterpret_cast<u8 const* const*>(values));
  int conversions = 0;
  for (size_t at = 0; at < text.size();) {
    size_t const end =
        text[at] == '%' ? text.find_first_not_of("0123456789+-# .hlz", at + 1) : text.find('%', at);
    if (text[at] != '%') {
      std::fputs(text.substr(at, end - at).c_str(), stdout);
      at = end == std::string::npos ? text.size() : end;
      continue;
    }
    if (end == std::string::npos) break;
    if (text[end] == '%') {
      std::fputc('%', stdout);
    } else {
      print_value(text.substr(at, end + 1 - at), given);
      ++conversions;
    }
    at = end + 1;
  }
  __builtin_memcpy(result, &conversions, sizeof(conversions));
}

}  // namespace emu::ptx
