#pragma once

// Reads named fields of a Python dictionary: fields.get<"batch", int32_t>().

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <string>

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

  // Call after the last get: a misspelt name must not pass silently.
  void finish() const {
    if (left_ != 0) {
      throw pybind11::type_error("unknown field among " +
                                 std::string(pybind11::str(pybind11::list(dict_))));
    }
  }

 private:
  template <Name kName>
  PyObject* find() {
    static PyObject* const key = PyUnicode_InternFromString(kName.text);
    PyObject* const value = PyDict_GetItemWithError(dict_.ptr(), key);
    if (value != nullptr) --left_;
    return value;
  }

  template <Name kName, class T>
  static T convert(PyObject* value) {
    try {
      return pybind11::handle(value).cast<T>();
    } catch (pybind11::cast_error const&) {
      throw pybind11::type_error(
          std::string("field ") + kName.text +
          " has the wrong type or does not fit: " + std::string(pybind11::repr(value)));
    }
  }

  pybind11::dict const& dict_;
  size_t left_;
};

}  // namespace fa2::bindings
