// An allocator of CPU tensors that counts the bytes that live, over all threads: torch's own, with a header
// before each block. torch's profiler misses what gloo's threads free, and a counter in front of malloc would
// count the workspaces of oneDNN. plan_memory.py compiles and installs it.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace {

constexpr size_t HEADER = 64; // keeps torch's alignment
std::atomic<int64_t> now{0}, most{0};

void release(void* block) {
  if (!block) return;
  auto* begin = static_cast<char*>(block) - HEADER;
  int64_t size;
  std::memcpy(&size, begin, sizeof size);
  now -= size;
  c10::free_cpu(begin);
}

struct Counting final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (!bytes) return {nullptr, nullptr, &release, c10::Device(c10::DeviceType::CPU)};
    auto* begin = static_cast<char*>(c10::alloc_cpu(bytes + HEADER));
    const auto size = static_cast<int64_t>(bytes);
    std::memcpy(begin, &size, sizeof size);
    const int64_t total = now += size;
    int64_t seen = most;
    while (total > seen && !most.compare_exchange_weak(seen, total)) {
    }
    return {begin + HEADER, begin + HEADER, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t count) const override { std::memcpy(to, from, count); }
} counting;

} // namespace

extern "C" void install() { c10::SetCPUAllocator(&counting, 1); }

// The largest number of bytes since the last call; starts again from what lives now.
extern "C" int64_t peak() {
  const int64_t found = most;
  most = now.load();
  return found;
}
