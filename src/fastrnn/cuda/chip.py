"""What the plans need to know of a GPU: what one of its processors holds, and how fast it is."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import cupy

# Multiply-adds of a processor in a clock, by compute capability times ten: NVIDIA's CUDA C++ Programming Guide,
# "Arithmetic Instructions" (float32), and its data sheets (16 bits, dense, sums in float32; 8.6, 8.9 and 12.x are those
# of servers and workstations, GeForce has half, which the capability does not tell).
FLOAT32 = {75: 64, 80: 64, 86: 128, 87: 128, 89: 128, 90: 128, 100: 128, 103: 128, 120: 128, 121: 128}
TENSOR = {75: 512, 80: 1024, 86: 512, 87: 1024, 89: 512, 90: 2048, 100: 4096, 103: 4096, 120: 512, 121: 512}
# The most that a warp's own instruction, mma.sync, reaches: half of Hopper's rate, whose full one and Blackwell's need
# instructions of their own. Not yet measured.
WARP_TENSOR = 1024
FIRST_RELEASE = 70  # compute capability, times ten, of the first chip with the barrier of csrc/intrinsics.cuh


class Chip(NamedTuple):
    """A GPU."""

    capability: int  # compute capability times ten
    processors: int
    clock: float  # Hz
    shared: int  # bytes of shared memory that a block may have
    registers: int  # of a processor, 32 bits each
    cooperative: bool = True  # whether it runs all blocks of a launch at once if asked to, so that they may wait

    @property
    def float32(self) -> int:
        """Multiply-adds of a processor in a clock, float32."""
        return _nearest(FLOAT32, self.capability)

    @property
    def tensor(self) -> int:
        """Multiply-adds of a processor's tensor cores in a clock, 16 bits with sums in float32."""
        return _nearest(TENSOR, self.capability)

    @property
    def warp_tensor(self) -> int:
        """The same of mma.sync."""
        return min(WARP_TENSOR, self.tensor)


def _nearest(table: dict[int, int], capability: int) -> int:
    """The entry of a capability, or of the last one before it."""
    return table[max((known for known in table if known <= capability), default=min(table))]


@cache
def chip(device: int) -> Chip:
    """Return what a device is."""
    asked = cupy.cuda.Device(device)
    told, capability = asked.attributes, int(asked.compute_capability)
    return Chip(
        capability, told["MultiProcessorCount"], 1e3 * told["ClockRate"], told["MaxSharedMemoryPerBlockOptin"],
        told["MaxRegistersPerMultiprocessor"], capability >= FIRST_RELEASE and bool(told["CooperativeLaunch"]),
    )  # fmt: skip
