// Which instruction set runs: the best one that the build and the CPU have, unless MOESAIC_CPU_ISA names one.

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kernels.h"

namespace moesaic {
namespace {

constexpr const char* kNames[] = {"avx512", "avx2", "neon", "generic", nullptr};

#if defined(__x86_64__) || defined(__i386__)
bool cpu_has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool cpu_has_avx512() {
#ifdef MOESAIC_EMULATE_AVX512
  return cpu_has_avx2();
#else
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#endif
}
#endif

#if defined(__aarch64__)
bool cpu_has_dot_products() {
#if defined(__linux__)
  constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kDotProducts;
#else
  return true;  // every Arm machine that Apple makes
#endif
}
#endif

const Kernels* table_of(const std::string& name) {
  if (name == "generic") return generic_kernels();
#if defined(__x86_64__) || defined(__i386__)
  if (name == "avx2" && cpu_has_avx2()) return avx2_kernels();
  if (name == "avx512" && cpu_has_avx512()) return avx512_kernels();
#elif defined(__aarch64__)
  if (name == "neon" && cpu_has_dot_products()) return neon_kernels();
#endif
  return nullptr;
}

bool is_known(const std::string& name) {
  for (const char* const* known = kNames; *known; ++known) {
    if (name == *known) return true;
  }
  return false;
}

const Kernels* wanted(const std::string& name) {
  if (!is_known(name)) {
    throw std::runtime_error("MOESAIC_CPU_ISA: unknown instruction set '" + name +
                             "'; known are avx512, avx2, neon and generic");
  }
  if (const Kernels* table = table_of(name)) return table;
  throw std::runtime_error("MOESAIC_CPU_ISA: this CPU or this build does not have '" + name +
                           "'; unset it to use the best one there is");
}

const Kernels* best() {
  const char* forced = std::getenv("MOESAIC_CPU_ISA");
  if (forced && *forced) return wanted(forced);
  for (const char* const* name = kNames; *name; ++name) {
    if (const Kernels* table = table_of(*name)) return table;
  }
  throw std::runtime_error("no instruction set was compiled in");
}

std::atomic<const Kernels*> in_use{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* table = in_use.load(std::memory_order_acquire);
  if (!table) in_use.store(table = best(), std::memory_order_release);
  return *table;
}

const char* const* known_isas() { return kNames; }

bool isa_runs_here(const char* name) { return table_of(name) != nullptr; }

void use_isa(const char* name) {
  in_use.store(*name ? wanted(name) : best(), std::memory_order_release);
}

}  // namespace moesaic
