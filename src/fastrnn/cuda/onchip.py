"""The plans on the chip: all steps in one launch each way, on the memory of the step plan; see csrc/onchip.cuh."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import cupy

from fastrnn.arrays import Array
from fastrnn.cuda import kernels
from fastrnn.cuda.forward import Scratch, States
from fastrnn.cuda.packed import Packed
from fastrnn.cuda.source import OnChip
from fastrnn.recurrence import Run

if TYPE_CHECKING:
    from fastrnn.cuda.backward import Backward


def forward_loop(
    variants: tuple[OnChip, ...], packed: Packed, run: Run, states: States, into: Scratch, save: bool
) -> Callable[[], None]:
    """Return what writes the final state and y, and if they are to be saved all states, where forward_steps would.

    It only launches: all memory that the kernel needs is there, and is kept as long as it is.
    """
    (steps, batch), y = run.y.view.shape[:2], run.y.view
    if steps * batch == 0:
        return _nothing
    first, last = (steps - 1, 0) if run.reverse else (0, steps - 1)
    (h_first, c_first), (h_last, c_last) = (
        (states.hs[slot], None if states.cs is None else states.cs[slot])
        for slot in (states.slots(first, run.reverse)[0], states.slots(last, run.reverse)[1])
    )
    kept = (states.hs, states.cs, states.gates, states.s, states.seen) if save else (None,) * 5
    k, weights = _packed(variants, "onchip_pack_forward", packed)
    return k.launch(
        "onchip_forward", batch, into.ax, weights, packed.bias, packed.p, run.keep, *_zone(run), h_first,
        c_first, run.lengths, run.clear, *kept, states.own_h, states.own_c, h_last, c_last, y, *_strides(y),
        int(run.reverse), steps, batch, packed.hidden,
    )  # fmt: skip


def backward_loop(
    variants: tuple[OnChip, ...], packed: Packed, run: Run, states: States, memory: Backward
) -> Callable[[], None]:
    """Return what writes the gradients of all pre-activations and of the initial state, where backward_steps would.

    As in `forward_loop`.
    """
    (steps, batch), d = run.x.shape[:2], memory.d
    if steps * batch == 0:
        memory.dh0[...] = memory.direct
        return _nothing
    k, weights = _packed(variants, "onchip_pack_backward", packed)
    return k.launch(
        "onchip_backward", batch, weights, packed.p, run.keep, *_zone(run), states.hs, states.cs,
        states.own_h, states.own_c, run.lengths, run.clear, states.gates, memory.dy, *_strides(memory.dy),
        memory.dcells, *_strides(memory.dcells), memory.direct, memory.dc, None if d.dax is d.dah else d.dax, d.dah,
        d.dah_last, memory.dp, memory.dh0, int(run.reverse), steps, batch, packed.hidden,
    )  # fmt: skip


def _nothing() -> None:
    """There is no step."""


def _packed(variants: tuple[OnChip, ...], kernel: str, packed: Packed) -> tuple[kernels.OnChipKernels, Array]:
    """The kernels, and the recurrent weights as they load them: about as long as one more launch, so not kept."""
    assert packed.hh is not None, "a diagonal U is declined"
    k = kernels.load_on_chip(variants, cupy.cuda.Device().id)
    return k, k.packed(kernel, packed.hh)


def _strides(array: Array | None) -> tuple[int, int]:
    """Distance of the steps and of the rows of an array [T, B, width], in elements."""
    return (0, 0) if array is None else (array.strides[0] // array.itemsize, array.strides[1] // array.itemsize)


def _zone(run: Run) -> tuple[Array | None, Array | None, int, int]:
    """Zoneout's shares of the old h and c, and the distance of their steps and rows; rates have one of each."""
    if run.zone is None:
        return None, None, 0, 0
    shares = [share for share in run.zone if share is not None]
    step, row = _strides(shares[0])
    return *run.zone, step * (shares[0].shape[0] > 1), row * (shares[0].shape[1] > 1)
