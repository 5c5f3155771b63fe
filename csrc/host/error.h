#pragma once

// The only ways in which host code reports a failure. Python sees RuntimeError.

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fa2 {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {

inline void write_message(std::ostringstream& out, std::string_view text) { out << text; }

template <class First, class... Rest>
void write_message(std::ostringstream& out, std::string_view text, First const& first,
                   Rest const&... rest) {
  size_t const hole = text.find("{}");
  out << text.substr(0, hole);
  if (hole == std::string_view::npos) return;
  out << first;
  write_message(out, text.substr(hole + 2), rest...);
}

}  // namespace detail

// `text` with each "{}" replaced by the next argument.
template <class... Args>
std::string message(std::string_view text, Args const&... args) {
  std::ostringstream out;
  detail::write_message(out, text, args...);
  return out.str();
}

}  // namespace fa2

// FA2_CHECK(seqlen <= limit, "seqlen {} is above {}", seqlen, limit);
#define FA2_CHECK(condition, ...)                                          \
  do {                                                                     \
    if (!(condition)) [[unlikely]] throw ::fa2::Error(::fa2::message(__VA_ARGS__)); \
  } while (false)

// For calls that return cudaError_t; the caller's file includes the CUDA headers.
#define FA2_CUDA_CHECK(call)                                                                  \
  do {                                                                                        \
    cudaError_t const fa2_status = (call);                                                    \
    FA2_CHECK(fa2_status == cudaSuccess, "{} failed: {}", #call, cudaGetErrorString(fa2_status)); \
  } while (false)
