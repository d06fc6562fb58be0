// The one C function of the CPU library: which instruction set is in force (asegnet_fast/_extension.py asks).
#include "common/isa.h"

extern "C" __attribute__((visibility("default"))) const char* asegnet_fast_active_isa() {
  switch (asegnet::active_isa()) {
    case asegnet::Isa::kAvx512: return "avx512";
    case asegnet::Isa::kAvx2: return "avx2";
    default: return "default";
  }
}
