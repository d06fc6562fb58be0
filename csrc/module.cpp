// `_C`: what was built, by which compiler, for which machines. The only file that knows Python.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of asegnet_fast";
  m.def("build_info", [] {
    return pybind11::module_::import("json").attr("loads")(ASEGNET_BUILD_INFO);
  }, "The contents of lib/build_info.json, compiled in.");
}
