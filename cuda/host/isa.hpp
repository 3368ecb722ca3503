#pragma once

#include <string>
#include <vector>

#include "host/kernel_args.hpp"

namespace convt::host {

// Instruction sets that this build has and this machine can run, best first.
std::vector<std::string> usable_isas();
std::vector<std::string> compiled_isas();

const Kernels& kernels();             // of the instruction set in use
std::string isa();
void set_isa(const std::string& name);   // throws std::invalid_argument

}  // namespace convt::host
