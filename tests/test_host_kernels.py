"""The host run of CUDA kernels is trusted only so far as it is seen to catch mistakes: each kind is planted here."""

import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cupy_standin
import host_kernels
import ml_dtypes
import numpy as np
import pytest
from cases import Case, assert_results, draw, expected
from host_kernels import KernelError
from test_cuda import evaluate_on_device
from tolerance import assert_same_bits

pytestmark = [
    pytest.mark.skipif(bool(host_kernels.missing_tools()), reason=host_kernels.missing_tools()),
    pytest.mark.usefixtures("nothing_to_replay"),
]

KERNELS = """
extern "C" __global__ void block_sum(const float* x, float* sums, int n) {
  float* part = dynamic_shared<float>();
  put(part + threadIdx.x, fetch(x + blockIdx.x * blockDim.x + threadIdx.x));
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    const int k = threadIdx.x;
    if (k < half) put(part + k, fetch(part + k) + fetch(part + k + half));
    __syncthreads();  // step
  }
  if (threadIdx.x == 0 && static_cast<int>(blockIdx.x) < n) put(sums + blockIdx.x, fetch(part));
}

extern "C" __global__ void neighbour(int* exchange, int* out, int steps) {
  const int blocks = gridDim.x, b = blockIdx.x;
  for (int t = 0; t < steps; ++t) {
    if (threadIdx.x == 0) put(exchange + (t % 2) * blocks + b, fetch(out + b));
    grid_sync();  // exchange
    if (threadIdx.x == 1) put(out + b, fetch(exchange + (t % 2) * blocks + (b + 1) % blocks) + 1);
    __syncthreads();
  }
}

constexpr int together = 4;

// Each block passes what it has to the next one of its cluster, by distributed shared memory, two places in turn.
extern "C" __global__ void __cluster_dims__(together, 1, 1) passed_on(int* out, int steps) {
  int* mine = dynamic_shared<int>();
  int* next = map_shared_rank(mine, (cluster_rank() + 1) % together);
  int value = blockIdx.x;
  cluster_sync();  // begun
  for (int t = 0; t < steps; ++t) {
    if (static_cast<int>(threadIdx.x) == t % 3) put(next + t % 2, value);
    cluster_arrive();  // written
    cluster_wait();  // exchange
    value = fetch(mine + t % 2);
    __syncthreads();
  }
  if (threadIdx.x == 0) put(out + blockIdx.x, value);
}

extern "C" __global__ void __cluster_dims__(2, 2) ranks(int* out, int* peers) {
  int* mine = dynamic_shared<int>();
  const int block = blockIdx.y * gridDim.x + blockIdx.x;
  if (threadIdx.x == 0) put(mine, block);
  cluster_sync();
  if (threadIdx.x == 0) put(out + block, static_cast<int>(cluster_rank()));
  if (threadIdx.x < 4) put(peers + 4 * block + threadIdx.x, fetch(map_shared_rank(mine, threadIdx.x)));
  cluster_sync();  // all have read
}

// Through memory of the device, with the block whose number differs by this bit.
extern "C" __global__ void __cluster_dims__(2) swapped(int* exchange, int bit) {
  const int block = blockIdx.x;
  if (threadIdx.x == 0) put(exchange + (block ^ bit), block);
  cluster_sync();  // exchange
  if (threadIdx.x == 1) fetch(exchange + block);
}

extern "C" __global__ void __cluster_dims__(2) between_the_halves(int* out) {
  int* mine = dynamic_shared<int>();
  int* other = map_shared_rank(mine, 1 - cluster_rank());
  cluster_sync();
  cluster_arrive();
  put(other, 7);
  cluster_wait();
  cluster_sync();  // and once more
  put(out + blockIdx.x, fetch(mine));
}

extern "C" __global__ void warp_sum(const float* x, float* out) {
  float sum = fetch(x + threadIdx.x);
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  put(out + threadIdx.x, sum);
}

extern "C" __global__ void shifted(const float* x, float* out) {
  const float value = fetch(x + threadIdx.x);
  put(out + threadIdx.x, __shfl_down_sync(0xffffffffu, value, 3));
}

extern "C" __global__ void order_of(int* order, int* count) {
  put(order + atomicAdd(count, 1), static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x));
}

extern "C" __global__ void count_plainly(int* count) { put(count, fetch(count) + 1); }

extern "C" __global__ void unwritten(float* out) { put(out, fetch(dynamic_shared<float>())); }

extern "C" __global__ void two_barriers(int* out) {
  if (threadIdx.x == 0) grid_sync();
  else __syncthreads();
  put(out + threadIdx.x, 1);
}

extern "C" __global__ void reads_at(const float* x, float* out, int64 at) { put(out, fetch(x + at)); }

extern "C" __global__ void to_16_bits(const float* x, Half* half, BFloat16* bfloat, int64 n) {
  const int64 k = blockIdx.x * static_cast<int64>(blockDim.x) + threadIdx.x;
  if (k < n) narrow(x[k], half[k]), narrow(x[k], bfloat[k]);
}

extern "C" __global__ void from_16_bits(const Half* half, const BFloat16* bfloat, float* h, float* b, int64 n) {
  const int64 k = blockIdx.x * static_cast<int64>(blockDim.x) + threadIdx.x;
  if (k < n) h[k] = widen(half[k]), b[k] = widen(bfloat[k]);
}
"""
I32, I64 = np.int32, np.int64


@pytest.fixture(scope="module")
def kernel(cupy: ModuleType) -> Iterator[Callable[..., host_kernels.Kernel]]:
    from fastrnn.cuda import source

    compiler = cupy_standin.RawModule.compiler
    memory = source.expand("memory.cuh")

    def planted(name: str, *change: str) -> host_kernels.Kernel:
        """The kernel of this name, with one piece of text replaced by another."""
        code = KERNELS
        if change:
            assert code.count(change[0]) == 1
            code = code.replace(*change)
        return host_kernels.Kernel(compiler, f"{memory}\n{code}", name)

    return planted


def test_barriers_and_shared_memory(kernel: Any) -> None:
    x, sums = np.arange(96, dtype=np.float32), np.full(3, np.nan, np.float32)
    for seed in range(5):
        kernel("block_sum")((3,), (32,), (x, sums, I32(3)), 128, seed)
        np.testing.assert_array_equal(sums, x.reshape(3, 32).sum(1))


def test_a_missing_block_barrier_is_caught(kernel: Any) -> None:
    x, sums = np.ones(96, np.float32), np.empty(3, np.float32)
    broken = kernel("block_sum", "__syncthreads();  // step", "")
    for seed in range(5):
        with pytest.raises(KernelError, match=r"race: thread .* with no barrier between"):
            broken((3,), (32,), (x, sums, I32(3)), 128, seed)


def test_grid_barrier(kernel: Any) -> None:
    for seed in range(5):
        exchange, out = np.zeros(8, I32), np.arange(4, dtype=I32)
        kernel("neighbour")((4,), (3,), (exchange, out, I32(6)), 0, seed)
        np.testing.assert_array_equal(out, (np.arange(4) + 6) % 4 + 6)


def test_a_missing_grid_barrier_is_caught_and_a_block_barrier_is_no_substitute(kernel: Any) -> None:
    for instead in ("", "__syncthreads();"):
        broken = kernel("neighbour", "grid_sync();  // exchange", instead)
        with pytest.raises(KernelError, match="race"):
            broken((4,), (3,), (np.zeros(8, I32), np.arange(4, dtype=I32), I32(6)))


def test_a_cluster_passes_on_through_distributed_shared_memory(kernel: Any) -> None:
    for seed in range(5):
        out = np.full(8, -1, I32)
        kernel("passed_on")((8,), (3,), (out, I32(6)), 8, seed)
        np.testing.assert_array_equal(out.reshape(2, 4), [[2, 3, 0, 1], [6, 7, 4, 5]])
        ranks, peers = np.full(16, -1, I32), np.full((16, 4), -1, I32)
        kernel("ranks")((4, 4), (5,), (ranks, peers), 4, seed)
        np.testing.assert_array_equal(ranks.reshape(4, 4), np.tile([[0, 1], [2, 3]], (2, 2)))
        blocks = np.arange(16).reshape(4, 4)
        for y, x in np.ndindex(4, 4):
            corner = blocks[y - y % 2 : y - y % 2 + 2, x - x % 2 : x - x % 2 + 2]
            np.testing.assert_array_equal(peers[blocks[y, x]], corner.reshape(-1))


@pytest.mark.parametrize(
    ("text", "instead", "seen"),
    [
        ("cluster_arrive();  // written", "", "waits and has not arrived"),
        ("cluster_wait();  // exchange", "", "arrives twice without waiting|race"),
        ("cluster_sync();  // begun", "", "before the cluster's first barrier"),
        ("cluster_sync();  // begun", "cluster_arrive();", "arrives twice|before the cluster's first barrier"),
        ("(cluster_rank() + 1) % together", "together", "asks for rank 4"),
        ("int* next = map_shared_rank(mine,", "int* next = map_shared_rank(out,", "an address that is not in its own"),
        ("value = fetch(mine + t % 2);", "value = fetch(mine);", "race"),
    ],
)  # fmt: skip
def test_misuse_of_a_cluster_barrier_is_caught(text: str, instead: str, seen: str, kernel: Any) -> None:
    changed = kernel("passed_on", text, instead)
    for seed in range(5):
        with pytest.raises(KernelError, match=seen):
            changed((8,), (3,), (np.zeros(8, I32), I32(6)), 8, seed)


@pytest.mark.parametrize("instead", ["", "__syncthreads();"])
def test_a_missing_cluster_barrier_is_caught_and_a_block_barrier_is_no_substitute(instead: str, kernel: Any) -> None:
    broken = kernel("swapped", "cluster_sync();  // exchange", instead)
    whole = "cluster_arrive();  // written\n    cluster_wait();  // exchange"
    for seed in range(5):
        with pytest.raises(KernelError, match="race"):
            broken((4,), (2,), (np.zeros(4, I32), I32(1)), 4, seed)
        with pytest.raises(KernelError, match="race"):
            kernel("passed_on", whole, instead)((8,), (3,), (np.zeros(8, I32), I32(6)), 8, seed)


def test_what_is_done_between_the_halves_of_a_cluster_barrier_is_not_ordered_by_it(kernel: Any) -> None:
    for seed in range(5):
        out = np.zeros(2, I32)
        kernel("between_the_halves")((2,), (1,), (out,), 4, seed)
        assert out.tolist() == [7, 7]
        with pytest.raises(KernelError, match="race"):
            kernel("between_the_halves", "cluster_sync();  // and once more", "")((2,), (1,), (out,), 4, seed)


def test_a_block_must_not_end_while_others_may_touch_its_shared_memory(kernel: Any) -> None:
    for seed in range(5):
        args = np.zeros(4, I32), np.zeros(16, I32)
        with pytest.raises(KernelError, match="ended block"):
            kernel("ranks", "cluster_sync();  // all have read", "")((2, 2), (5,), args, 4, seed)


def test_clusters_are_apart(kernel: Any) -> None:
    with pytest.raises(AssertionError, match="in clusters of"):
        kernel("passed_on")((6,), (3,), (np.zeros(8, I32), I32(6)), 8)
    for seed in range(5):
        kernel("swapped")((4,), (2,), (out := np.zeros(4, I32), I32(1)), 4, seed)
        assert out.tolist() == [1, 0, 3, 2]
        with pytest.raises(KernelError, match="race"):  # the barrier of a cluster orders nothing between two of them
            kernel("swapped")((4,), (2,), (np.zeros(4, I32), I32(2)), 4, seed)


def test_shuffles(kernel: Any) -> None:
    x, out = np.random.default_rng(0).integers(0, 99, 64).astype(np.float32), np.empty(64, np.float32)
    kernel("warp_sum")((1,), (64,), (x, out), 0, 3)
    np.testing.assert_array_equal(out, np.repeat(x.reshape(2, 32).sum(1), 32))
    kernel("shifted")((1,), (64,), (x, out), 0, 4)
    want = x.reshape(2, 32).copy()
    want[:, :29] = want[:, 3:].copy()
    np.testing.assert_array_equal(out.reshape(2, 32)[:, :29], want[:, :29])


def test_atomics_do_not_race_and_plain_counting_does(kernel: Any) -> None:
    orders = []
    for seed in (1, 1, 2):
        order, count = np.full(24, -1, I32), np.zeros(1, I32)
        kernel("order_of")((3,), (8,), (order, count), 0, seed)
        assert count[0] == 24
        assert sorted(order) == list(range(24))
        orders.append(list(order))
    assert orders[0] == orders[1] != orders[2]  # the order of threads and blocks is drawn from the seed
    assert [k // 8 for k in orders[0]] != sorted(k // 8 for k in orders[0])
    with pytest.raises(KernelError, match="race"):
        kernel("count_plainly")((1,), (2,), (np.zeros(1, I32),))


def test_shared_memory_begins_as_nan(kernel: Any) -> None:
    out = np.zeros(1, np.float32)
    kernel("unwritten")((1,), (1,), (out,), 4)
    assert np.isnan(out[0])
    with pytest.raises(KernelError, match="out of bounds"):
        kernel("unwritten")((1,), (1,), (out,), 0)


def test_a_deadlock_is_caught(kernel: Any) -> None:
    with pytest.raises(KernelError, match="deadlock"):
        kernel("two_barriers")((1,), (3,), (np.zeros(3, I32),))


@pytest.mark.parametrize("at", [-1, 4, 2**40])
def test_an_access_outside_the_arrays_is_caught(at: int, kernel: Any) -> None:
    whole, out = np.arange(8, dtype=np.float32), np.zeros(1, np.float32)
    kernel("reads_at")((1,), (1,), (whole[2:6], out, I64(3)))
    assert out[0] == 5
    with pytest.raises(KernelError, match=r"out of bounds: thread .* reads outside every array"):
        kernel("reads_at")((1,), (1,), (whole[2:6], out, I64(at)))  # even where the larger array has that element


def test_arguments_are_held_against_the_parameters(kernel: Any) -> None:
    x, out = np.zeros(4, np.float32), np.zeros(1, np.float32)
    wrong = [
        ((x, out), "2 arguments for 3"),
        ((x.astype(np.float64), out, I64(0)), "argument 0: float64, expected float32"),
        ((out, I64(0), x), "argument 1: int64, expected an array"),
        ((x, out, I32(0)), "argument 2: int32, expected int64"),
        ((x, out, 0), "argument 2: int, expected np.int64"),
        ((x, out, np.uintp(0)), "argument 2: uint64, expected int64"),
    ]
    for args, message in wrong:
        with pytest.raises(AssertionError, match=message):
            kernel("reads_at")((1,), (1,), args)


def test_16_bit_conversions(kernel: Any) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    h, b = np.empty(2**16, np.float32), np.empty(2**16, np.float32)
    half, bfloat = bits.view(np.float16), bits.view(ml_dtypes.bfloat16)
    kernel("from_16_bits")((64,), (1024,), (half, bfloat, h, b, I64(2**16)))
    assert_same_bits("half", h, half.astype(np.float32))
    assert_same_bits("bfloat16", b, bfloat.astype(np.float32))
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore", invalid="ignore"):
        between = (h[:-1].astype(np.float64) + h[1:]) / 2  # ties
        many = rng.standard_normal(1000) * 10.0 ** rng.integers(-9, 6, 1000)
        x = np.concatenate((h, b, between, many, [65519.9, 65520])).astype(np.float32)
        want = x.astype(np.float16), x.astype(ml_dtypes.bfloat16)
    got = np.empty(x.size, np.float16), np.empty(x.size, ml_dtypes.bfloat16)
    kernel("to_16_bits")((-(-x.size // 256),), (256,), (x, *got, I64(x.size)))
    for name, value, wanted in zip(("half", "bfloat16"), got, want, strict=True):
        number = ~np.isnan(x)
        assert_same_bits(name, value[number].view(np.uint16), wanted[number].view(np.uint16))
        assert np.isnan(value[~number].astype(np.float32)).all()


# Mistakes planted in the kernels of fastrnn: what, in which case, which text instead of which, what is seen
PLANTED = [
    ("transposed gates", "lstm", {}, "const A i = sigmoid(seeing<peephole>(ax[0] + ah[0], p, 0, c_prev));",
     "const A i = sigmoid(seeing<peephole>(ax[1] + ah[1], p, 0, c_prev));", "y: off by"),
    ("transposed gate gradients", "gru", {},
     "mix_backward(z, n, h_prev, dh, dax[1], dax[2], dh_prev);\n    dax[0]",
     "mix_backward(z, n, h_prev, dh, dax[2], dax[1], dh_prev);\n    dax[0]", "d .*: off by"),
    ("y written as if it had one direction", "gru", {"bidirectional": True},
     "c_alone)\n        write_h(here, b, u, at, zone_h, zone_row, hp, factor, h, seen, own_h, y, y_row, h_new)",
     "c_alone)\n        write_h(here, b, u, at, zone_h, zone_row, hp, factor, h, seen, own_h, y, H, h_new)",
     "y: off by|race|out of bounds"),
    ("ax read with the stride of another array", "lstm", {}, "load<W>(ax + (b * Cell::gates + g) * H + u, from_x[g])",
     "load<W>(ax + (b * Cell::gates + g) * (H + 1) + u, from_x[g])", "out of bounds"),
    ("saved values written over each other", "lstm", {}, "store<W>(saved + (b * Cell::saved + g) * H + u, kept[g])",
     "store<W>(saved + (b + g) * H + u, kept[g])", "race"),
    ("units owned by two threads", "rnn_tanh", {"H": 40}, "const int64 at = b * H + u;\n      A hp[W]",
     "const int64 at = b * H + u / 2;\n      A hp[W]", "race"),
    ("a reset forgotten", "gru", {"reset": "random"}, "return flags && fetch(flags + b);", "return false;", "off by"),
    ("padding forgotten", "lstm", {"lengths": "random"}, "return !lengths || t < fetch(lengths + b)",
     "return !lengths || t <= fetch(lengths + b)", "off by"),
    ("the direct path forgotten", "gru", {}, "if (!dm && !last_alone) store<W>(direct + at, dh_prev);", "", "off by"),
    ("another gate's peephole", "lstm_peephole", {}, "(ax[1] + ah[1], p, 1, c_prev)", "(ax[1] + ah[1], p, 0, c_prev)",
     "y: off by"),
    ("a peephole's gradient not passed on", "lstm_coupled_peephole", {}, "dc = seeing<peephole>(dc * f, p, 0, dax[0]);",
     "dc = dc * f;", "d .*: off by"),
    ("gradients of the last step alone", "lstm_peephole", {}, "total[k] += values[k]", "total[k] = values[k]",
     "d weight_p_l0: off by"),
    ("one row's shares for all", "gru", {"zoneout": 0.4, "training": True}, "mix(zone_h + b * zone_row + u, hp, h_new)",
     "mix(zone_h + u, hp, h_new)", "y: off by"),
    ("the held gradient forgotten", "lstm", {"zoneout": 0.4}, "held[k] = part[k] * d[k]", "held[k] = A(0)",
     "d .*: off by"),
    ("c after zoneout taken for the cell's", "lstm", {"zoneout": 0.4}, "store<W>(own_c + at, c_new)",
     "store<W>(own_c + at, cp)", "d .*: off by"),
    ("h after zoneout taken for the cell's", "rnn_tanh", {"zoneout": 0.4}, "store<W>(own_h + at, h_new)",
     "store<W>(own_h + at, hp)", "d .*: off by"),
    ("dropout not in the gradient", "gru", {"recurrent_dropout": 0.4, "training": True}, "add[k] *= factor[k]", "",
     "d .*: off by"),
    ("dropout not in the gated state", "gru_reset_before", {"recurrent_dropout": 0.4, "training": True},
     "out[k] *= factor[k]", "", "y: off by"),
    ("dropout not in the gated state's gradient", "gru_reset_before", {"recurrent_dropout": 0.4, "training": True},
     "grad[k] *= factor[k]", "", "d .*: off by"),
    ("dropout not in a diagonal's gradient", "gru",
     {"recurrent_dropout": 0.4, "training": True, "recurrent": "diagonal"},
     "A path = da * weight[k] * factor[k]", "A path = da * weight[k]", "d .*: off by"),
    ("one gate's diagonal for all", "gru", {"recurrent": "diagonal"},
     "load<W>(diagonal + g * H + u, weight);\n            for (int k = 0; k < W; ++k) sees[k] = hp[k]",
     "load<W>(diagonal + u, weight);\n            for (int k = 0; k < W; ++k) sees[k] = hp[k]", "y: off by"),
    ("the gated state's path past a diagonal forgotten", "gru_reset_before", {"recurrent": "diagonal"},
     "gate[0][k] += da_0", "", "d .*: off by"),
    ("a shared gate's gradient overwritten", "mgu", {}, "da[k] += shared[k]", "", "d .*: off by"),
    *(
        (f"no barrier before {what}", cell, {"layer_norm": True, "H": 40, "T": 2}, f"__syncthreads();  // {what}", "",
         "race")
        for what, cell in (
            ("these are written", "rnn_tanh"), ("the sums before these have been read", "rnn_tanh"),
            ("the row's c is there", "lstm"), ("the row's gradients of hat are there", "lstm"),
            ("the row's gradients are there", "gru"), ("gate 0's gradient is there", "gru_reset_before"),
        )
    ),
    ("moments of the first gate alone", "lstm", {"layer_norm": True},
     "return gate_of(ah, ah_last, b, g, H); }, 0, inner, H)", "return gate_of(ah, ah_last, b, g, H); }, 0, 1, H)",
     "y: off by"),
    ("sums divided by another width", "gru", {"layer_norm": True},
     "static_cast<A>((last - first) * H);\n  A sum[1]", "static_cast<A>((last - first) * H + 1);\n  A sum[1]",
     "y: off by"),
    ("gradients' sums divided by another width", "gru", {"layer_norm": True},
     "static_cast<A>((last - first) * H);\n  Moments", "static_cast<A>(H);\n  Moments", "d .*: off by"),
    ("one warp's sums for all", "rnn_tanh", {"layer_norm": True, "H": 40}, "fetch(of_warps + k * N + n)",
     "fetch(of_warps + n)", "y: off by"),
    ("no epsilon", "rnn_tanh", {"layer_norm": True}, " + A(epsilon)", "", "y: off by"),
    ("the gains of x W for h U", "gru", {"layer_norm": True}, "gains + (Cell::gates + g) * H + u);\n",
     "gains + g * H + u);\n", "y: off by"),
    ("another gate's gain in a gradient", "gru", {"layer_norm": True}, "d[k] = normalise_backward(d[k] * factor[k],",
     "d[k] = normalise_backward(d[k],", "d .*: off by"),
    ("c after zoneout normalised", "lstm", {"layer_norm": True, "zoneout": 0.4}, "(own_c ? own_c : c)", "(c)",
     "y: off by"),
    ("dc without what comes through its row", "lstm", {"layer_norm": True},
     "dc_t[k] += normalise_backward(d[k], c_t[k], m_c, of_c)", "dc_t[k] += d[k] * m_c.scale", "d .*: off by"),
    ("gains' gradients of rows as they are", "lstm", {"layer_norm": True}, "sum[k] = d[k] * hat(a[k], m_x)",
     "sum[k] = d[k] * a[k]", "d norm_ih_l0: off by"),
    ("the separate gate's gain from dax", "gru", {"layer_norm": True}, "if (apart) load<W>(dah",
     "if (false) load<W>(dah", "d norm_hh_l0: off by"),
    ("a reset forgotten in the rows", "gru", {"layer_norm": True, "reset": "random"},
     "!here || cleared, first, Cell::gates", "!here, first, Cell::gates", "d .*: off by"),
    ("one gate's diagonal for all rows", "gru", {"layer_norm": True, "recurrent": "diagonal"},
     "load<W>(diagonal + (first + g) * H + u, out)", "load<W>(diagonal + first * H + u, out)", "y: off by"),
    ("one gate's products with c_prev for all", "lstm", {"dense": True},
     "add_from(from_c_prev + (b * dense + g) * H + u, from_h[g])",
     "add_from(from_c_prev + b * dense * H + u, from_h[g])", "y: off by"),
    ("the last gate sees nothing", "lstm_coupled", {"dense": True}, "if (dense && from_c) add_from",
     "if (false) add_from", "y: off by"),
    ("another gate sees c", "lstm", {"dense": True}, "add_from(from_c + at, from_h[Cell::gates - 1])",
     "add_from(from_c + at, from_h[Cell::gates - 2])", "y: off by"),
    ("c_prev seen where it was cleared", "lstm", {"dense": True, "reset": "random"}, "if (from_c_prev && !cleared)",
     "if (from_c_prev)", "y: off by"),
    ("c not seen where c_prev was cleared", "lstm", {"dense": True, "reset": "random"}, "if (dense && from_c) add_from",
     "if (dense && from_c && !cleared) add_from", "y: off by"),
    ("the launch for c writes h", "lstm", {"dense": True}, "if (!reads_out && !c_alone)",
     "if (!reads_out)", "out of bounds"),
    ("the launch for c reads it out", "lstm", {"dense": True, "layer_norm": True}, "if (c_alone) continue;", "",
     "out of bounds"),
    ("the last gate's path to c forgotten", "lstm", {"dense": True}, "if (dense && to_c) add_from",
     "if (false) add_from", "d .*: off by"),
    ("what the last gate gives c is held", "lstm", {"dense": True, "zoneout": 0.4}, "add_from(to_c + at, dc_t)",
     "add_from(to_c + at, held_c)", "d .*: off by"),
    ("the first gates' path to c_prev forgotten", "lstm_coupled", {"dense": True}, "if (dense && to_c_prev && exists",
     "if (false && exists", "d .*: off by"),
    ("a reset forgotten on the way to c_prev", "lstm", {"dense": True, "reset": "random"},
     "exists(lengths, b, later) && !is_set(clear_later, b)) add_from", "exists(lengths, b, later)) add_from",
     "d .*: off by"),
    ("the launch for the last gate passes dh on", "lstm", {"dense": True},
     "if (!dm && !last_alone) store<W>(direct + at, dh_prev)", "if (!dm) store<W>(direct + at, dh_prev)",
     "d .*: off by"),
    ("the launch for the last gate adds to the gains", "lstm", {"dense": True, "layer_norm": True},
     "if (!last_alone) accumulate(dnorm_c", "accumulate(dnorm_c", "out of bounds"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "options", "text", "instead", "seen"),
    [pytest.param(*rest, id=what.replace(" ", "-")) for what, *rest in PLANTED],
)
def test_a_planted_mistake_is_caught(
    cell: str, options: Any, text: str, instead: str, seen: str, cupy: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from fastrnn.cuda import kernels, places, source

    case = Case(cell, "cuda", **options)
    if case.layer_norm:  # whole vectors, if H fits: other threads sum single elements
        monkeypatch.setattr(kernels, "WIDE_ELEMENTS", 1)
    problem = draw(case)
    want = expected(case, problem)
    assert_results(case, problem, evaluate_on_device(case, problem), want)
    assemble = source.assemble

    def broken(variant: Any) -> str:
        code = assemble(variant)
        assert code.count(text) == 1
        return code.replace(text, instead)

    monkeypatch.setattr(source, "assemble", broken)
    kernels._load.cache_clear()
    places.forget()
    try:
        with pytest.raises(AssertionError, match=seen):
            assert_results(case, problem, evaluate_on_device(case, problem), want)
    finally:
        kernels._load.cache_clear()
        places.forget()


def test_offsets_beyond_32_bits(cupy: ModuleType) -> None:
    """Rows so far apart that their offset in elements does not fit 32 bits; only what is touched takes memory."""
    from fastrnn.cuda import source

    row, reserve = 2**31 + 5, getattr(mmap, "MAP_NORESERVE", 0x4000)
    try:
        memory = mmap.mmap(-1, 2 * (row + 8), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve)
    except (OSError, ValueError) as error:
        pytest.skip(f"this system does not lend 4 GiB of addresses: {error}")
    far = np.frombuffer(memory, np.float16)
    y = np.lib.stride_tricks.as_strided(far, (2, 3), (2 * row, 2))
    code = source.assemble(source.Variant("rnn_tanh", "float16", 1))
    product, h = np.arange(6, dtype=np.float16).reshape(2, 3), np.zeros((2, 3), np.float16)
    null = np.uintp(0)
    args = (product, h, null, null, np.empty_like(h), null, y, I64(row), I64(0), I64(2), I64(3))
    host_kernels.Kernel(cupy.RawModule.compiler, code, "project_forward")((1,), (32,), args)
    np.testing.assert_array_equal(y, product)
    narrow = code.replace("y + b * y_row + u, out", "y + static_cast<int>(b * y_row) + u, out")
    assert narrow != code
    with pytest.raises(KernelError, match="out of bounds"):
        host_kernels.Kernel(cupy.RawModule.compiler, narrow, "project_forward")((1,), (32,), args)
    for variant in source.variants():
        code = source.assemble(variant)
        for _, name in host_kernels.ENTRY.findall(code):
            sizes = [p for p in host_kernels.Kernel(cupy.RawModule.compiler, code, name).parameters if p[0] == " "]
            assert set(sizes) == {" q"}, f"{variant} {name} takes a size of fewer than 64 bits"


def test_arguments_in_a_wrong_order_are_caught(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrnn.cuda import kernels

    launch = kernels.Kernels.launch

    def swapped(self: Any, name: str, rows: int, units: int, *args: Any) -> None:
        order = list(args)
        order[-2:] = order[:-3:-1]  # B and H
        launch(self, name, rows, units, *order)

    monkeypatch.setattr(kernels.Kernels, "launch", swapped)
    case = Case("gru", "cuda")
    problem = draw(case)
    with pytest.raises(AssertionError, match=r"out of bounds|race|off by"):
        assert_results(case, problem, evaluate_on_device(case, problem), expected(case, problem))


def test_only_the_named_intrinsics_differ_between_host_and_device(cupy: ModuleType) -> None:
    from fastrnn.cuda import source

    folder: Path = source.folder()
    asking = [path.name for path in folder.rglob("*.cuh") if "FASTRNN_HOST" in path.read_text()]
    assert asking == ["intrinsics.cuh"]
    text = (folder / "intrinsics.cuh").read_text()
    host, device = text.split("#ifdef FASTRNN_HOST")[1].split("#else")
    function = re.compile(r"^(?:inline|__device__ __forceinline__) (\w+\*? \w+\([^)]*\)) {", re.MULTILINE)

    def signatures(part: str) -> list[str]:
        names = r"(?<=[\w*&]) ?\b(x|out|p|bytes|write|flag|until)\b"
        return [re.sub(names, "", found) for found in function.findall(part)]

    wanted = [
        "float widen(Half)", "float widen(BFloat16)", "void narrow(float, Half&)", "void narrow(float, BFloat16&)",
        "void write_16(float*, const float* v)", "void write_16(double*, const double* v)",
        "void group_arrive(unsigned*)", "void group_wait(const unsigned*, unsigned)",
        "void* shared_memory()", "void touch(const void*, int, bool)",
    ]  # fmt: skip
    assert signatures(host) == wanted
    assert signatures(device) == wanted
