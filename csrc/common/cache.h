// When an output is better written past the cache.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>

namespace asegnet {

// Whether an op that reads and writes so many bytes should use streaming stores: they spare the read of each line
// that an ordinary store makes, but the next op finds nothing in the cache. Large shared caches serve many virtual
// machines at once, so no more than 32 MiB of them count.
inline bool exceeds_cache(int64_t bytes_moved) {
  static const int64_t cache = [] {
    constexpr int64_t kMost = 32 << 20;
    int64_t size = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    size = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return size > 0 ? std::min(size, kMost) : kMost;
  }();
  return bytes_moved > cache;
}

}  // namespace asegnet
