#pragma once

// Reads named fields of a Python dictionary, which may hold others:
//
//   fields.get<"batch", int32_t>()
//   fields.nested<"seqs_q">([](Fields& seqs) { return seqs.get<"max_seqlen", int32_t>(); })

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

namespace fa2::bindings {

// A string literal as a template argument.
template <size_t N>
struct Name {
  char text[N];
  consteval Name(char const (&literal)[N]) { std::copy_n(literal, N, text); }
};

class Fields {
 public:
  explicit Fields(pybind11::dict const& dict) : dict_(dict), left_(dict.size()) {}

  template <Name kName, class T>
  T get() {
    PyObject* const value = find<kName>();
    if (value == nullptr) {
      throw pybind11::type_error(std::string("missing field: ") + kName.text);
    }
    return convert<kName, T>(value);
  }

  template <Name kName, class T>
  T get_or(T fallback) {
    PyObject* const value = find<kName>();
    return value == nullptr ? fallback : convert<kName, T>(value);
  }

  // An address.
  template <Name kName, class T>
  T* pointer_or_null() {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(get_or<kName, int64_t>(0)));
  }

  // What `read` makes of the fields of an inner dictionary, all of which it has to read.
  template <Name kName, class Read>
  auto nested(Read const& read) {
    return read_inner(get<kName, pybind11::dict>(), read);
  }

  template <Name kName, class Read>
  auto nested_if_given(Read const& read) {
    PyObject* const value = find<kName>();
    using Struct = std::invoke_result_t<Read, Fields&>;
    return value == nullptr
               ? std::optional<Struct>()
               : std::optional<Struct>(read_inner(convert<kName, pybind11::dict>(value), read));
  }

  template <Name kName, class Read>
  auto nested_or_default(Read const& read) {
    return nested_if_given<kName>(read).value_or(std::invoke_result_t<Read, Fields&>{});
  }

  // Call after the last get: a misspelt name must not pass silently.
  void finish() const {
    if (left_ != 0) {
      throw pybind11::type_error("unknown field among " +
                                 std::string(pybind11::str(pybind11::list(dict_))));
    }
  }

 private:
  template <class Read>
  static auto read_inner(pybind11::dict const& dict, Read const& read) {
    Fields inner(dict);
    auto const result = read(inner);
    inner.finish();
    return result;
  }

  template <Name kName>
  PyObject* find() {
    static PyObject* const key = PyUnicode_InternFromString(kName.text);
    PyObject* const value = PyDict_GetItemWithError(dict_.ptr(), key);
    if (value != nullptr) --left_;
    return value;
  }

  template <Name kName, class T>
  static T convert(PyObject* value) {
    pybind11::handle const object(value);
    try {
      // A cast to a Python type would call its constructor.
      if constexpr (std::is_base_of_v<pybind11::object, T>) {
        if (!pybind11::isinstance<T>(object)) throw pybind11::cast_error();
      }
      return object.cast<T>();
    } catch (pybind11::cast_error const&) {
      throw pybind11::type_error(
          std::string("field ") + kName.text +
          " has the wrong type or does not fit: " + std::string(pybind11::repr(object)));
    }
  }

  pybind11::dict const& dict_;
  size_t left_;
};

}  // namespace fa2::bindings
