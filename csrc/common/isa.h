// Which of the compiled instruction sets serves this process.
#pragma once

#include <cstdlib>
#include <cstring>

namespace asegnet {

enum class Isa { kDefault, kAvx2, kAvx512 };

// torch's own variable, ATEN_CPU_CAPABILITY, caps the choice; read once.
inline Isa active_isa() {
  static const Isa isa = [] {
    Isa best = Isa::kDefault;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
      best = Isa::kAvx2;
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        best = Isa::kAvx512;
      }
    }
    if (const char* cap = std::getenv("ATEN_CPU_CAPABILITY")) {
      if (!std::strcmp(cap, "default")) best = Isa::kDefault;
      if (!std::strcmp(cap, "avx2") && best == Isa::kAvx512) best = Isa::kAvx2;
    }
#endif
    return best;
  }();
  return isa;
}

}  // namespace asegnet

// Declares one table of kernels per instruction set and `kernels()`, which returns the one in force.
// simd.cpp, compiled once per set with ASEGNET_ISA naming its namespace, defines the table.
#if defined(__x86_64__)
#define ASEGNET_DECLARE_KERNELS(Table)                      \
  namespace isa_default { extern const Table kernels; }     \
  namespace isa_avx2 { extern const Table kernels; }        \
  namespace isa_avx512 { extern const Table kernels; }      \
  inline const Table& kernels() {                           \
    switch (active_isa()) {                                 \
      case Isa::kAvx512: return isa_avx512::kernels;        \
      case Isa::kAvx2: return isa_avx2::kernels;            \
      default: return isa_default::kernels;                 \
    }                                                       \
  }
#else
#define ASEGNET_DECLARE_KERNELS(Table)                      \
  namespace isa_default { extern const Table kernels; }     \
  inline const Table& kernels() { return isa_default::kernels; }
#endif
