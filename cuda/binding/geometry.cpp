#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "binding/bindings.hpp"
#include "geometry/patch.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace convt::binding {
namespace {

nb::tuple pair(std::int64_t a, std::int64_t b) { return nb::make_tuple(a, b); }

void check_axis(const Axis& axis) {
  const auto require = [](bool legal, const char* name, std::int64_t value, const char* rule) {
    if (!legal)
      throw nb::value_error((std::string(name) + " is " + std::to_string(value) + "; legal: " + rule).c_str());
  };
  require(axis.input >= 1, "input", axis.input, "at least 1");
  require(axis.filter >= 1, "filter", axis.filter, "at least 1");
  require(axis.stride >= 1, "stride", axis.stride, "at least 1");
  require(axis.dilation >= 1, "dilation", axis.dilation, "at least 1");
  require(axis.padding >= 0, "padding", axis.padding, "at least 0");
  require(axis.output_padding >= 0, "output_padding", axis.output_padding, "at least 0");
}

}  // namespace

void bind_geometry(nb::module_& module) {
  nb::enum_<Origin>(module, "Origin", "Where the q-grid starts: o + origin = stride * q + phase.")
      .value("padded", Origin::padded, "origin = padding: shifts do not depend on the padding")
      .value("aligned", Origin::aligned, "origin = 0: phase = o mod stride");
  nb::class_<Axis>(
      module, "Axis",
      "One spatial axis of a transposed convolution, in pixels: o + padding = stride * i + dilation * tap.")
      .def(
          "__init__",
          [](Axis* self, std::int64_t input, std::int64_t filter, std::int64_t stride, std::int64_t padding,
             std::int64_t output_padding, std::int64_t dilation) {
            const Axis axis{input, filter, stride, padding, output_padding, dilation};
            check_axis(axis);
            new (self) Axis(axis);
          },
          "input"_a, "filter"_a, "stride"_a = 1, "padding"_a = 0, "output_padding"_a = 0, "dilation"_a = 1)
      .def_ro("input", &Axis::input)
      .def_ro("filter", &Axis::filter)
      .def_ro("stride", &Axis::stride)
      .def_ro("padding", &Axis::padding)
      .def_ro("output_padding", &Axis::output_padding)
      .def_ro("dilation", &Axis::dilation)
      .def_prop_ro("output", &Axis::output, "output extent")
      .def_prop_ro("tap_period", &tap_period, "taps of one phase are this far apart")
      .def(
          "tap",
          [](const Axis& axis, std::int64_t tap, Origin origin) {
            const Tap at = tap_of(axis, tap, origin);
            return pair(at.shift, at.phase);
          },
          "tap"_a, "origin"_a = Origin::padded, "(shift, phase) of a tap: it reads input pixel q - shift")
      .def(
          "q_grid",
          [](const Axis& axis, Origin origin) {
            const QGrid grid = q_grid(axis, origin);
            return pair(grid.begin, grid.count);
          },
          "origin"_a = Origin::padded, "(first q, number of q positions) that cover the output")
      .def(
          "output_of",
          [](const Axis& axis, std::int64_t q, std::int64_t phase, Origin origin) {
            return output_of(axis, q, phase, origin);
          },
          "q"_a, "phase"_a, "origin"_a = Origin::padded, "output pixel at q of a phase, perhaps outside the output")
      .def(
          "phase_range",
          [](const Axis& axis, std::int64_t phase, Origin origin) {
            const Range range = phase_range(axis, phase, origin);
            return pair(range.begin, range.end);
          },
          "phase"_a, "origin"_a = Origin::padded, "[begin, end) of the q whose output pixel of this phase exists")
      .def(
          "patch",
          [](const Axis& axis, std::int64_t q_begin, std::int64_t q_end, Origin origin) {
            const Range range = patch_of(axis, {q_begin, q_end}, origin);
            return pair(range.begin, range.end);
          },
          "q_begin"_a, "q_end"_a, "origin"_a = Origin::padded, "[begin, end) of the input pixels that a box of q reads")
      .def("halo", &halo, "origin"_a = Origin::padded, "pixels a patch has more than its box")
      .def(
          "tap_input_range",
          [](const Axis& axis, std::int64_t tap) {
            const Range range = tap_input_range(axis, tap);
            return pair(range.begin, range.end);
          },
          "tap"_a, "[begin, end) of the input pixels that reach an existing output through a tap");
}

}  // namespace convt::binding
