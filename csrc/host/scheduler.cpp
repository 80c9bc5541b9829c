// Runs a grid of CUDA threads on one host thread, and checks what they do.
//
// A fiber runs CUDA threads one after another; when one waits at a barrier another fiber goes on, so a kernel without
// barriers costs no switch at all and one with them needs as many fibers as threads wait. All blocks are resident. The
// order of threads, and which waiting fiber goes on, are drawn from a seed.
//
// Every access that goes through `touch` must lie inside one array and must not race: of two threads that touch the
// same bytes, one writing, a barrier that both took part in must lie between, unless both are atomic. A barrier of the
// block orders threads of one block, one of the cluster threads of one cluster, a barrier of the grid all. Another
// block's shared memory may be touched from the cluster's first barrier on, when its blocks have begun, and a barrier
// must follow before that block ends. What this cannot see: memory fences, and accesses that do not go through `touch`.
#include "cuda.hpp"

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace host {

Thread* current;
dim3 grid_dim, block_dim, cluster_dim;

namespace {

struct Failed {};  // unwinds one CUDA thread; the launch goes no further

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Thread* thread = nullptr;  // the one that waits
};

struct Meeting {  // one barrier of a warp, a block, a cluster or the grid
  unsigned alive = 0, arrived = 0, generation = 0;
  std::vector<Fiber*> waiting;  // for the generation to end
};

struct Access {
  unsigned thread = 0;  // number + 1; 0 is nobody
  unsigned block_generation = 0, grid_generation = 0;
  unsigned arrivals = 0, waits = 0;  // at the cluster's barrier, of this thread
  bool atomic = false;
};
struct Granule { Access writer, readers[2]; };
constexpr uintptr_t granule_bytes = 2;  // the smallest type that kernels write

constexpr size_t page_granules = 512;
using Page = std::array<Granule, page_granules>;

struct Array {
  uintptr_t begin, end;
  long block;  // whose shared memory it is; -1 for the grid's
  std::vector<std::unique_ptr<Page>> pages;  // made when touched: an array may be larger than memory

  Granule& granule(size_t k) {
    if (pages.empty()) pages.resize((end - begin) / (granule_bytes * page_granules) + 1);
    std::unique_ptr<Page>& page = pages[k / page_granules];
    if (!page) page.reset(new Page());
    return (*page)[k % page_granules];
  }
};

struct AtCluster {  // a thread at its cluster's barrier
  unsigned arrivals = 0, waits = 0, generation = 0;  // the last one, when it arrived
};

struct Launch {
  void (*kernel)(void**);
  void** args;
  std::vector<Thread> threads;
  std::vector<unsigned> queue;  // threads not yet begun
  std::vector<Meeting> warps, blocks, clusters;
  Meeting grid;
  std::vector<AtCluster> at_cluster;    // by thread
  std::vector<unsigned> cluster_of;     // by block
  std::vector<long> touched_by_others;  // by block: how often who touched its shared memory had arrived; or -1
  std::vector<std::vector<double>> shared;
  std::vector<std::array<double, 32>> slots;
  std::vector<Array> arrays;  // in order of address
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle, ready;  // ready: the barrier is passed
  size_t suspended = 0;             // those that wait, and those that are ready
  Fiber* running = nullptr;
  ucontext_t scheduler;
  std::mt19937_64 random;
  std::string error;
  unsigned warps_per_block = 0;
  size_t shared_bytes = 0;
};
Launch* launch;

constexpr size_t stack_bytes = 256 << 10;
std::vector<std::unique_ptr<char[]>> stacks;  // of launches before: to map one takes longer than most threads run

unsigned flat(const dim3& at, const dim3& size) { return (at.z * size.y + at.y) * size.x + at.x; }
unsigned volume(const dim3& size) { return size.x * size.y * size.z; }

Meeting& meeting(Barrier barrier) {
  if (barrier == Barrier::grid) return launch->grid;
  if (barrier == Barrier::cluster) return launch->clusters[launch->cluster_of[current->flat_block]];
  if (barrier == Barrier::block) return launch->blocks[current->flat_block];
  return launch->warps[current->flat_block * launch->warps_per_block + flat(current->index, block_dim) / 32];
}

std::string where(const Thread& t) {
  const auto text = [](const dim3& d) { return std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z); };
  return "thread (" + text(t.index) + ") of block (" + text(t.block) + ")";
}

[[noreturn]] void fail(const std::string& message) {
  if (launch->error.empty()) launch->error = message;
  throw Failed();
}

void release_if_full(Meeting& m) {
  if (!m.alive || m.arrived != m.alive) return;
  m.arrived = 0, ++m.generation;
  launch->ready.insert(launch->ready.end(), m.waiting.begin(), m.waiting.end());
  m.waiting.clear();
}

void end_thread() {
  const AtCluster& at = launch->at_cluster[current->flat];
  if (at.arrivals != at.waits) fail("cluster barrier: " + where(*current) + " arrives and ends without waiting");
  const bool last = launch->blocks[current->flat_block].alive == 1;
  if (last && launch->touched_by_others[current->flat_block] >= static_cast<long>(at.waits))
    fail("ended block: " + where(*current) + " is its block's last, and another block touches its shared memory with no "
         "barrier between");
}

void leave() {  // the current thread has ended
  for (Barrier barrier : {warp, block, cluster, grid}) {
    Meeting& m = meeting(barrier);
    --m.alive;
    release_if_full(m);
  }
}

void run_fiber() {
  for (;;) {
    while (!launch->queue.empty() && launch->error.empty()) {
      current = &launch->threads[launch->queue.back()];
      launch->queue.pop_back();
      try {
        launch->kernel(launch->args);
        end_thread();
      } catch (const Failed&) {
      }
      leave();
    }
    Fiber* self = launch->running;
    launch->idle.push_back(self);
    swapcontext(&self->context, &launch->scheduler);
  }
}

void go_on(Fiber* fiber) {
  launch->running = fiber;
  current = fiber->thread;
  swapcontext(&launch->scheduler, &fiber->context);
}

Fiber* fresh_fiber() {
  if (!launch->idle.empty()) {
    Fiber* fiber = launch->idle.back();
    launch->idle.pop_back();
    return fiber;
  }
  launch->fibers.push_back(std::make_unique<Fiber>());
  Fiber* fiber = launch->fibers.back().get();
  if (stacks.empty()) {
    fiber->stack.reset(new char[stack_bytes]);
  } else {
    fiber->stack = std::move(stacks.back());
    stacks.pop_back();
  }
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack.get();
  fiber->context.uc_stack.ss_size = stack_bytes;
  makecontext(&fiber->context, run_fiber, 0);
  return fiber;
}

void run_all() {
  std::vector<Fiber*>& ready = launch->ready;
  while (launch->error.empty()) {
    const size_t choices = ready.size() + !launch->queue.empty();
    if (choices == 0) {
      if (launch->suspended) launch->error = "deadlock: a barrier that not all threads reach";
      return;
    }
    const size_t chosen = launch->random() % choices;
    if (chosen == ready.size()) {
      go_on(fresh_fiber());
      continue;
    }
    std::swap(ready[chosen], ready.back());
    Fiber* fiber = ready.back();
    ready.pop_back();
    --launch->suspended;
    go_on(fiber);
  }
}

bool ordered(const Access& before, const Access& now) {
  if (before.thread == 0 || before.thread == now.thread || before.grid_generation != now.grid_generation) return true;
  const unsigned block = launch->threads[before.thread - 1].flat_block;
  if (block == current->flat_block && before.block_generation != now.block_generation) return true;
  // what a thread does after it arrived belongs to its next arrival
  return launch->cluster_of[block] == launch->cluster_of[current->flat_block] && before.arrivals < now.waits;
}

void race(const Access& before, const char* first, const char* second) {
  fail(std::string("race: ") + where(*current) + " " + second + " what " + where(launch->threads[before.thread - 1]) + " " +
       first + " with no barrier between");
}

void check(Granule& granule, const Access& now, bool write) {
  if (!ordered(granule.writer, now) && !(granule.writer.atomic && now.atomic))
    race(granule.writer, "wrote", write ? "writes" : "reads");
  if (write) {
    for (const Access& reader : granule.readers)
      if (!ordered(reader, now) && !(reader.atomic && now.atomic)) race(reader, "read", "writes");
    granule.writer = now;
    return;
  }
  // Two readers are enough: a writer that races with any reader races with one of two different ones.
  Access* readers = granule.readers;
  Access* place = readers[0].thread == now.thread || ordered(readers[0], now) ? &readers[0] : &readers[1];
  *place = now;
}

void touch_shared_memory_of(unsigned block) {
  const AtCluster& at = launch->at_cluster[current->flat];
  if (launch->cluster_of[block] != launch->cluster_of[current->flat_block])
    fail("shared memory: " + where(*current) + " touches that of a block of another cluster");
  if (at.waits == 0)
    fail("shared memory: " + where(*current) + " touches another block's before the cluster's first barrier");
  if (launch->blocks[block].alive == 0)
    fail("ended block: " + where(*current) + " touches the shared memory of a block that has ended");
  long& touched = launch->touched_by_others[block];
  touched = std::max(touched, static_cast<long>(at.arrivals));
}

void suspend(Meeting& m, unsigned generation) {  // until the meeting's generation is another one
  Fiber* self = launch->running;
  self->thread = current;
  (m.generation == generation ? m.waiting : launch->ready).push_back(self);
  ++launch->suspended;
  swapcontext(&self->context, &launch->scheduler);
}

}  // namespace

void wait(Barrier barrier) {
  if (!launch->error.empty()) throw Failed();
  Meeting& m = meeting(barrier);
  const unsigned generation = m.generation;
  ++m.arrived;
  release_if_full(m);
  suspend(m, generation);
}

void arrive_at_cluster() {
  if (!launch->error.empty()) throw Failed();
  Meeting& m = meeting(cluster);
  AtCluster& at = launch->at_cluster[current->flat];
  if (at.arrivals++ != at.waits) fail("cluster barrier: " + where(*current) + " arrives twice without waiting");
  at.generation = m.generation;
  ++m.arrived;
  release_if_full(m);
}

void wait_for_cluster() {
  if (!launch->error.empty()) throw Failed();
  AtCluster& at = launch->at_cluster[current->flat];
  if (at.arrivals == at.waits) fail("cluster barrier: " + where(*current) + " waits and has not arrived");
  suspend(meeting(cluster), at.generation);
  ++at.waits;
}

void require(bool holds, const char* message) {
  if (!holds) fail(message + (", " + where(*current)));
}

unsigned cluster_rank() {
  const dim3& at = current->block;
  return flat({at.x % cluster_dim.x, at.y % cluster_dim.y, at.z % cluster_dim.z}, cluster_dim);
}

void* shared_memory_of(unsigned rank, const void* own) {
  if (rank >= volume(cluster_dim)) fail("shared memory: " + where(*current) + " asks for rank " + std::to_string(rank));
  const dim3& at = current->block;
  const dim3 other{at.x - at.x % cluster_dim.x + rank % cluster_dim.x,
                   at.y - at.y % cluster_dim.y + rank / cluster_dim.x % cluster_dim.y,
                   at.z - at.z % cluster_dim.z + rank / (cluster_dim.x * cluster_dim.y)};
  const auto offset = static_cast<const char*>(own) - static_cast<char*>(shared_memory());
  if (offset < 0 || offset > static_cast<ptrdiff_t>(launch->shared_bytes))
    fail("shared memory: " + where(*current) + " maps an address that is not in its own");
  return reinterpret_cast<char*>(launch->shared[flat(other, grid_dim)].data()) + offset;
}

void* shared_memory() { return launch->shared[current->flat_block].data(); }

double* warp_slot(int lane) {
  const unsigned in_block = flat(current->index, block_dim) / 32;
  return &launch->slots[current->flat_block * launch->warps_per_block + in_block][lane];
}

int lane() { return flat(current->index, block_dim) % 32; }

void touch(const void* p, int bytes, bool write, bool atomic) {
  const auto first = reinterpret_cast<uintptr_t>(p), last = first + bytes;
  auto after = std::upper_bound(launch->arrays.begin(), launch->arrays.end(), first,
                                [](uintptr_t at, const Array& array) { return at < array.begin; });
  if (after == launch->arrays.begin() || last > std::prev(after)->end)
    fail("out of bounds: " + where(*current) + (write ? " writes" : " reads") + " outside every array");
  const int alignment = std::min(bytes, 16);  // of the widest access there is
  if (first % alignment)
    fail("misaligned: " + where(*current) + " at an address that is no multiple of " + std::to_string(alignment));
  Array& array = *std::prev(after);
  if (array.block >= 0 && array.block != static_cast<long>(current->flat_block))
    touch_shared_memory_of(static_cast<unsigned>(array.block));
  const AtCluster& at_cluster = launch->at_cluster[current->flat];
  const Access now{current->flat + 1, launch->blocks[current->flat_block].generation, launch->grid.generation,
                   at_cluster.arrivals, at_cluster.waits, atomic};
  for (uintptr_t at = (first - array.begin) / granule_bytes; at <= (last - 1 - array.begin) / granule_bytes; ++at)
    check(array.granule(at), now, write);
}

float from_bits(uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

float from_bfloat16(unsigned short bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }

unsigned short to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return x != x ? 0x7fff : static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_half(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float value = exponent == 31 ? (fraction ? NAN : INFINITY)
                      : exponent     ? std::ldexp(1024.f + fraction, exponent - 25)
                                     : std::ldexp(static_cast<float>(fraction), -24);
  return bits >> 15 ? -value : value;
}

unsigned short to_half(float x) {
  const int sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (!(size < 65520.f)) return static_cast<unsigned short>(sign | (x != x ? 0x7e00 : 0x7c00));
  int exponent = 0;
  std::frexp(size, &exponent);                              // size = f * 2^exponent, 1/2 <= f < 1
  const int last = std::max(size == 0 ? -13 : exponent, -13) - 11;  // the last place is worth 2^last
  const int units = static_cast<int>(std::nearbyint(std::ldexp(size, -last)));
  // the leading one of a normal number adds 1 to the exponent, as does a carry
  return static_cast<unsigned short>(sign | (((last + 24) << 10) + units));
}

}  // namespace host

// Run a kernel; returns null, or what it did wrong. grid, block: [3]; whole clusters. arrays: [count] pairs (address,
// bytes).
extern "C" const char* host_launch(void (*kernel)(void**), void** args, const unsigned* grid, const unsigned* block,
                                   const dim3* cluster, size_t shared_bytes, uint64_t seed, const uintptr_t* arrays, size_t count) {
  using namespace host;
  static std::string error;
  Launch run;
  launch = &run;
  run.kernel = kernel, run.args = args, run.random.seed(seed);
  grid_dim = {grid[0], grid[1], grid[2]}, block_dim = {block[0], block[1], block[2]};
  cluster_dim = *cluster;
  const unsigned blocks = volume(grid_dim), threads = volume(block_dim);
  run.warps_per_block = (threads + 31) / 32;
  run.warps.resize(blocks * run.warps_per_block), run.blocks.resize(blocks), run.slots.resize(run.warps.size());
  run.clusters.resize(blocks / volume(cluster_dim)), run.at_cluster.resize(blocks * threads);
  run.touched_by_others.assign(blocks, -1), run.shared_bytes = shared_bytes;
  run.shared.assign(blocks, std::vector<double>((shared_bytes + 7) / 8, NAN));
  for (auto& memory : run.shared) std::memset(memory.data(), 0xff, memory.size() * 8);
  for (size_t k = 0; k < count; ++k) run.arrays.push_back({arrays[2 * k], arrays[2 * k] + arrays[2 * k + 1], -1, {}});
  for (unsigned b = 0; b < blocks && shared_bytes; ++b) {
    const auto begin = reinterpret_cast<uintptr_t>(run.shared[b].data());
    run.arrays.push_back({begin, begin + shared_bytes, b, {}});
  }
  const dim3 clusters{grid_dim.x / cluster_dim.x, grid_dim.y / cluster_dim.y, grid_dim.z / cluster_dim.z};
  std::sort(run.arrays.begin(), run.arrays.end(), [](const Array& a, const Array& b) { return a.begin < b.begin; });
  for (unsigned b = 0; b < blocks; ++b) {
    const dim3 at{b % grid_dim.x, b / grid_dim.x % grid_dim.y, b / (grid_dim.x * grid_dim.y)};
    run.cluster_of.push_back(flat({at.x / cluster_dim.x, at.y / cluster_dim.y, at.z / cluster_dim.z}, clusters));
    for (unsigned t = 0; t < threads; ++t) {
      Thread thread;
      thread.index = {t % block_dim.x, t / block_dim.x % block_dim.y, t / (block_dim.x * block_dim.y)};
      thread.block = at;
      thread.flat = b * threads + t, thread.flat_block = b;
      run.queue.push_back(thread.flat);
      run.threads.push_back(thread);
      ++run.grid.alive, ++run.clusters[run.cluster_of[b]].alive, ++run.blocks[b].alive;
      ++run.warps[b * run.warps_per_block + t / 32].alive;
    }
  }
  std::shuffle(run.queue.begin(), run.queue.end(), run.random);
  run_all();
  for (auto& fiber : run.fibers) stacks.push_back(std::move(fiber->stack));
  launch = nullptr;
  error = run.error;
  return error.empty() ? nullptr : error.c_str();
}
