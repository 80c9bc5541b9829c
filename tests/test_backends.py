"""Choosing a backend and a number of threads: by name, for a block, never silently."""

import inspect
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import BACKENDS, CELLS, FUNCTIONS, Case, draw, evaluate, make_layer, use_threads
from tolerance import assert_same_bits

import fastrnn
from fastrnn import backends, recurrence, threads


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_has_the_same_functions(name: str) -> None:
    assert {*BACKENDS, "cuda"} == set(backends.MODULES)  # which is tested in test_cuda.py
    assert set(FUNCTIONS) >= {"recur_forward", "recur_backward"}
    for function in FUNCTIONS:
        wanted = list(inspect.signature(getattr(recurrence.Backend, function)).parameters)[1:]
        assert list(inspect.signature(getattr(backends.module(name), function)).parameters) == wanted


def record(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which backend's loops run, in order."""
    ran: list[str] = []
    for name in BACKENDS:
        for function in ("recur_forward", "recur_backward"):
            original = getattr(backends.module(name), function)

            def wrapped(*args: Any, name: str = name, function: str = function, original: Any = original) -> Any:
                ran.append(f"{name}.{function}")
                return original(*args)

            monkeypatch.setattr(backends.module(name), function, wrapped)
    return ran


def test_the_compiled_backend_is_the_default_and_a_block_chooses_another(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = record(monkeypatch)
    layer, x = fastrnn.GRU(3, 4, seed=0), np.ones((2, 1, 3), np.float32)
    layer(x)
    assert ran == ["cpu.recur_forward"]
    with fastrnn.use_backend("reference"):
        layer(x)
        with fastrnn.use_backend("cpu"):
            layer(x)
        layer(x)
    layer(x)
    names = [name.split(".")[0] for name in ran[1:]]
    assert names == ["reference", "cpu", "reference", "cpu"]
    with pytest.raises(ZeroDivisionError), fastrnn.use_backend("reference"):
        _ = 1 / 0
    assert backends.current() == "cpu"


def test_a_backward_pass_runs_where_its_forward_pass_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = fastrnn.GRU(3, 4, seed=0), np.ones((2, 1, 3), np.float32)
    ran = record(monkeypatch)
    with fastrnn.use_backend("reference"):
        y, _, on_reference = layer.forward(x)
    _, _, on_cpu = layer.forward(x)
    on_reference(y)
    with fastrnn.use_backend("reference"):
        on_cpu(y)
    assert ran[2:] == ["reference.recur_backward", "cpu.recur_backward"]


def test_the_choice_holds_for_one_thread() -> None:
    seen: list[str] = []
    with fastrnn.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.current()))
        thread.start()
        thread.join()
        assert backends.current() == "reference"
    assert seen == ["cpu"]


def test_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_number", None)
    monkeypatch.delenv("FASTRNN_NUM_THREADS", raising=False)
    assert fastrnn.get_num_threads() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("FASTRNN_NUM_THREADS", "3")
    assert fastrnn.get_num_threads() == 3
    fastrnn.set_num_threads(np.int64(5))
    assert fastrnn.get_num_threads() == 5


@pytest.mark.parametrize("cell", CELLS)
def test_calls_from_many_threads_at_once_have_the_bits_of_single_ones(cell: str) -> None:
    cases = [Case(cell, "cpu", "float32", T=9, B=7, H=20 + k, num_layers=2, lengths="random") for k in range(4)]
    layers, problems = [make_layer(case) for case in cases], [draw(case) for case in cases]
    with use_threads(3):
        want = [evaluate(*run) for run in zip(layers, cases, problems, strict=True)]
        for layer in layers:
            layer.update({})  # drop the packed weights: the threads race to pack them
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(evaluate, layers[k % 4], cases[k % 4], problems[k % 4]) for k in range(32)]
            for k, job in enumerate(jobs):
                for name, value in job.result().items():
                    assert_same_bits(name, value, want[k % 4][name])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_can_compute(tmp_path: Path) -> None:
    """As data-loader workers do: the pool's threads do not survive a fork and must be made anew."""
    code = """
import os, numpy as np, fastrnn
from fastrnn.cpu import forward, layout, products
layout.THREAD_FLOPS = products.THREAD_FLOPS = layout.PART_BYTES = 1.0
layout.SHARED_BYTES = 0
forward.timed = lambda *_: None
fastrnn.set_num_threads(3)
layer, x = fastrnn.GRU(5, 33, seed=0), np.random.default_rng(0).standard_normal((9, 7, 5), dtype=np.float32)
def run():
    y, _, backward = layer.forward(x)
    return y, backward(y).x, layer(x[:, :1])[0]  # the last one shared by threads that stand back
want = run()
child = os.fork()
if child == 0:
    same = all(np.array_equal(a, b) for a, b in zip(run(), want))
    os._exit(0 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert all(np.array_equal(a, b) for a, b in zip(run(), want))
print("same")
"""
    source = str(Path(fastrnn.__file__).parent.parent)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": source},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (run.stdout.strip(), run.returncode) == ("same", 0), run.stderr
