# Decides whether this build has CUDA (CONVT_CUDA) and sets CONVT_WITH_CUDA.
set(CONVT_WITH_CUDA OFF)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)   # imports without a driver and without a CUDA shared library
set(CONVT_CUDA_ARCHITECTURES "80-real;80-virtual;90a-real" CACHE STRING "architectures of the general kernels")

string(TOLOWER "${CONVT_CUDA}" convt_cuda_mode)
if(NOT convt_cuda_mode MATCHES "^(auto|on|off|wheels)$")
  message(FATAL_ERROR "CONVT_CUDA=${CONVT_CUDA}: legal values are auto, on, off and wheels")
endif()

if(convt_cuda_mode STREQUAL "wheels")
  # nvidia-cuda-nvcc and its companions install one tree per CUDA major version: nvidia/cu13.
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
      "import nvidia, pathlib; print(*[r for p in nvidia.__path__ for r in sorted(pathlib.Path(p).glob('cu*')) if (r / 'bin/nvcc').is_file()], sep=';')"
    OUTPUT_VARIABLE convt_cuda_roots OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(NOT convt_cuda_roots)
    message(FATAL_ERROR "CONVT_CUDA=wheels, but no nvcc wheel is installed for ${Python_EXECUTABLE}. Install the packages of the "
      "cuda-build extra in pyproject.toml (nvidia-cuda-nvcc and its companions) and build with --no-build-isolation")
  endif()
  list(GET convt_cuda_roots -1 convt_cuda_root)
  set(CMAKE_CUDA_COMPILER "${convt_cuda_root}/bin/nvcc")
  # The wheels keep libraries in lib/, nvcc looks in lib64/.
  set(CMAKE_CUDA_FLAGS_INIT "-L${convt_cuda_root}/lib")
  link_directories("${convt_cuda_root}/lib")
endif()

if(NOT convt_cuda_mode STREQUAL "off")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES "${CONVT_CUDA_ARCHITECTURES}")
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CONVT_WITH_CUDA ON)
  elseif(NOT convt_cuda_mode STREQUAL "auto")
    message(FATAL_ERROR "CONVT_CUDA=${CONVT_CUDA}, but no working nvcc was found. Put nvcc on PATH, set CUDACXX, or build with CONVT_CUDA=auto or off")
  endif()
endif()
if(CONVT_WITH_CUDA)
  message(STATUS "convt: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
else()
  message(STATUS "convt: no CUDA (CONVT_CUDA=${CONVT_CUDA}); the module computes on the CPU")
endif()
