// Philox4x32-10 words, the same as fastrnn/philox.py makes them: thread k writes words 4k to 4k + 3 of its stream.
// Moves 4 bytes a word.
#pragma once
#include "memory.cuh"

using uint32 = unsigned int;
using uint64 = unsigned long long;

// words [count]; key: the seed; c0, c1, c2: call, 2 * layer + direction, kind.
extern "C" __global__ void random_words(uint32* words, uint64 key, uint32 c0, uint32 c1, uint32 c2, int64 count) {
  const int64 block = blockIdx.x * static_cast<int64>(blockDim.x) + threadIdx.x;
  if (4 * block >= count) return;
  uint32 c[4] = {c0, c1, c2, static_cast<uint32>(block)}, k[2] = {static_cast<uint32>(key), static_cast<uint32>(key >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64 p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
    const uint32 high0 = static_cast<uint32>(p0 >> 32), high1 = static_cast<uint32>(p1 >> 32);
    c[0] = high1 ^ c[1] ^ k[0];
    c[1] = static_cast<uint32>(p1);
    c[2] = high0 ^ c[3] ^ k[1];
    c[3] = static_cast<uint32>(p0);
    k[0] += 0x9E3779B9u, k[1] += 0xBB67AE85u;
  }
  for (int j = 0; j < 4 && 4 * block + j < count; ++j) put(words + 4 * block + j, c[j]);
}
