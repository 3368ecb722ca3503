# nanobind comes from the build environment (pyproject.toml); it knows where its own CMake files are.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
  OUTPUT_VARIABLE nanobind_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE convt_nanobind_status)
if(NOT convt_nanobind_status EQUAL 0)
  message(FATAL_ERROR "nanobind is not installed for ${Python_EXECUTABLE}: pip install 'nanobind>=3.1'")
endif()
find_package(nanobind CONFIG REQUIRED)
