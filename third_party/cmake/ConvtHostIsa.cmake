# One object library per instruction set, from the same source: the module picks one at run time.
function(convt_add_host_isa isa)
  cmake_parse_arguments(ARG "" "" "FLAGS" ${ARGN})
  set(target convt_host_${isa})
  add_library(${target} OBJECT host/kernels.cpp)
  target_include_directories(${target} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
  target_compile_definitions(${target} PRIVATE CONVT_ISA=${isa} CONVT_ISA_${isa}=1)
  # fp-contract: a multiply-add is one rounding wherever the ISA has it; no other liberty with floating point.
  target_compile_options(${target} PRIVATE -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math
    -fno-tree-loop-distribute-patterns   # rows are short: a call of memset or memcpy costs more than the row
    ${ARG_FLAGS})
  target_sources(convt_host PRIVATE $<TARGET_OBJECTS:${target}>)
  target_compile_definitions(convt_host PRIVATE CONVT_HAS_${isa}=1)
endfunction()
