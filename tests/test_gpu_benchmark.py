"""`python -m benchmarks.gpu` without a GPU: records, resuming, parsing, tables, ctypes, and the comparison itself."""

import ctypes
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cupy_standin
import numpy as np
import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import barriers, check, compare, cudnn, cudnn_library, device, grid, summary, tables
from benchmarks.gpu.compare import Case
from benchmarks.gpu.record import CUT_SHORT, DeviceLostError, Record, read

ROOT = Path(__file__).parents[1]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fails() -> dict[str, Any]:
    raise ValueError("no such algorithm\nand a long story")


def test_a_record_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, calls = tmp_path / "grid.json", list[str]()

    def measure(name: str) -> dict[str, Any]:
        calls.append(name)
        return {"ms": len(calls)}

    first = Record(path, {"device": "one"}, 100)
    first.run("a", lambda: measure("a"))
    first.run("b", fails)
    second = Record(path, {"device": "two"}, 100)
    for name in ("a", "b", "c"):
        second.run(name, lambda name=name: measure(name))
    assert calls == ["a", "c"]
    content = read(path)
    assert content["facts"] == [{"device": "one"}, {"device": "two"}]
    assert content["rows"]["a"]["result"] == {"ms": 1}
    assert content["rows"]["b"]["error"] == "ValueError: no such algorithm"
    assert [content["rows"][name]["facts"] for name in "abc"] == [0, 0, 1]
    third = Record(path, {"device": "two"}, 100, again=True)
    for name in ("a", "b", "b"):
        third.run(name, lambda name=name: measure(name))
    assert calls == ["a", "c", "b"]
    assert "error" not in read(path)["rows"]["b"]


def test_a_row_that_ends_the_process_is_left_behind_as_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cudnn.json"

    def dies() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Record(path, {}, 100).run("a", dies)
    assert read(path)["rows"]["a"]["error"] == CUT_SHORT
    assert [p.name for p in tmp_path.iterdir()] == ["cudnn.json"]


def test_no_row_is_begun_when_the_time_is_up_or_the_device_is_lost(tmp_path: Path) -> None:
    clock = Clock()
    record = Record(tmp_path / "grid.json", {}, 100, clock=clock)
    record.run("a", dict)
    clock.now = 96
    record.run("b", dict)
    assert list(record.rows) == ["a"]
    assert record.left_out == 1

    def lost() -> None:
        raise RuntimeError("cudaErrorIllegalAddress")

    record = Record(tmp_path / "grid.json", {}, 100, alive=lost)
    with pytest.raises(DeviceLostError, match="after c: RuntimeError: cudaErrorIllegalAddress"):
        record.run("c", fails)
    assert "ValueError" in read(tmp_path / "grid.json")["rows"]["c"]["error"]


@pytest.mark.parametrize("text", ["{", "[1]", "{}"])
def test_a_foreign_file_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"grid\.json: expected"):
        Record(path, {}, 100)
    assert path.read_text() == text


def test_a_process_that_ends_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses, given = [-11, command.ONCE_MORE, 0, 0], list[list[str]]()

    def run(arguments: list[str], timeout: float) -> Any:
        given.append(arguments)
        rows = {str(k): {"result": {}} for k in range(len(given))}
        (tmp_path / "grid.json").write_text(json.dumps({"facts": [], "rows": rows}))
        return SimpleNamespace(returncode=statuses[len(given) - 1])

    monkeypatch.setattr(command.subprocess, "run", run)
    command.drive(tmp_path, "grid", 100, again=True)
    assert len(given) == 3
    assert ["--again" in arguments for arguments in given] == [True, False, False]
    monkeypatch.setattr(command.subprocess, "run", lambda *args, **kwargs: SimpleNamespace(returncode=-11))
    command.drive(tmp_path, "grid", 100, again=False)  # nothing comes of it: it ends all the same


def test_without_a_gpu_the_command_says_what_is_missing(tmp_path: Path) -> None:
    if not command.missing():
        pytest.skip("this machine has a GPU")
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "results")], cwd=ROOT, capture_output=True,
        text=True, env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )  # fmt: skip
    assert run.returncode == 1
    assert "benchmarks.gpu: device: 'cuda:0' needs" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "results").exists()


def test_every_section_runs_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what measures replaced: names are unique, and each row measures its own case."""
    seen: list[Any] = []

    def note(*args: Any) -> dict[str, Any]:
        seen.append(args)
        return {}

    for module, name in (
        (grid, "compare"), (tables, "compare"), (cudnn, "by_torch"), (cudnn, "directly"), (check, "tests"),
        (check, "sanitizer"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, note)
    for section in ("check", "cudnn", "grid", "tables"):
        seen.clear()
        record = Record(tmp_path / f"{section}.json", {}, 1e9)
        record._write = lambda name, outcome, rows=record.rows: rows.update({name: outcome})  # type: ignore[method-assign]
        command.SECTIONS[section].run(record)
        assert len(record.rows) == len(seen)
        if section != "tables":  # where two tables may have the same case
            assert len(set(seen)) == len(seen)
        for (case, *_), name in zip(seen, record.rows, strict=True):
            assert section == "check" or str(case) in name


def test_the_tables_are_those_that_were_published() -> None:
    training, inference = list(tables.deepbench_training()), list(tables.deepbench_inference())
    assert (len(training), len(inference)) == (53, 69)
    assert len({*training}) == 53
    assert len({*inference}) == 69
    assert {T for cell, _, _, T in training if cell == "lstm"} == {25, 50, 150}
    assert ("gru", 2816, 32, 1500) in training
    assert ("rnn_tanh", 2560, 128, 50) in training
    assert ("lstm", 256, 1, 150) in inference
    assert Case("lstm", "float16", 1024, 16, 768) in tables.cases()["flashrnn"]
    for name, limits in {"B": (1, 256), "H": (128, 2048), "T": (50, 1000)}.items():
        values = [getattr(case, name) for case in grid.cases()]
        assert (min(values), max(values)) == limits


def test_reports_of_the_tests_and_of_compute_sanitizer_are_read() -> None:
    good = (
        '<testsuites><testsuite><testcase name="a" time="0.5"/><testcase name="b" time="1"/></testsuite></testsuites>'
    )
    assert check.counts(good) == {"passed": 2, "seconds": 1.5}
    bad = good.replace(
        '<testcase name="b" time="1"/>', '<testcase name="b"><failure message="y: off by 3&#10;more"/></testcase>'
    )
    with pytest.raises(AssertionError, match=r"1 of 2 tests did not pass, first b: y: off by 3$"):
        check.counts(bad)
    with pytest.raises(AssertionError, match="0 of 0"):
        check.counts("<testsuites/>")
    with pytest.raises(AssertionError, match="1 of 1"):  # on a machine for checking, a skip is no success
        check.counts('<testsuite><testcase name="a"><skipped message="no GPU"/></testcase></testsuite>')
    assert check.findings("========= ERROR SUMMARY: 0 errors") == 0
    assert check.findings("== ERROR SUMMARY: 1 error\n== ERROR SUMMARY: 12 errors\n") == 13
    assert check.findings("== RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)") == 3
    with pytest.raises(RuntimeError, match="no summary: Device not supported"):
        check.findings("Device not supported\n")


def test_tools_that_could_find_nothing_are_not_run() -> None:
    assert check.tools("x[threadIdx.x] = 0;") == ["memcheck", "initcheck"]
    assert check.tools("float* part = dynamic_shared<float>();") == ["memcheck", "initcheck", "racecheck"]
    assert check.tools("__syncthreads();") == check.tools("cluster_sync();") == ["memcheck", "initcheck", "synccheck"]


def test_the_selections_of_the_check_are_all_tests_and_disjoint() -> None:
    """On a machine whose pytest has no plugins; and none of its tests is left to a nightly run."""
    bare = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def selected(expression: str) -> set[str]:
        arguments = [*check.command(expression, "unused.xml"), "--collect-only"]
        arguments.remove("--junitxml=unused.xml")
        output = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=bare).stdout
        return {line.partition("::")[2] for line in output.splitlines() if "::" in line}

    everything, marks = selected("test"), [f"{mark}-" for mark in check.DTYPES.values()]
    parts = [{name for name in everything if mark in name} for mark in marks]
    assert selected(marks[2]) == parts[2]  # float16, which is not to be found in bfloat16
    rest = selected(" and ".join(f"not {mark}" for mark in marks))
    assert rest == everything - set().union(*parts)
    assert all(parts)
    assert sum(map(len, parts)) + len(rest) == len(everything)
    assert {name for name in rest if "test_small_cases" in name}


def test_the_check_names_what_its_tests_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.missing() == []
    monkeypatch.setattr(check, "NEEDED", ("pytest", "no_such_package", "nor_this"))
    for row in (lambda: check.tests("test"), lambda: check.sanitizer("memcheck")):
        with pytest.raises(RuntimeError, match="the tests need no_such_package, nor_this, which"):
            row()


def test_the_check_runs_in_one_process_and_is_strict(tmp_path: Path) -> None:
    """Also with pytest-xdist, which this environment has."""
    test, report = tmp_path / "test_it.py", tmp_path / "report.xml"
    test.write_text(
        "def test_it(pytestconfig):\n"
        '    assert not pytestconfig.pluginmanager.hasplugin("xdist")\n'
        "    assert pytestconfig.option.strict_markers\n"
        "    assert pytestconfig.option.strict_config\n"
    )
    *arguments, _ = check.command("test", str(report))
    subprocess.run([*arguments, str(test), "-c", "pyproject.toml"], cwd=ROOT, capture_output=True)
    assert check.counts(report.read_text())["passed"] == 1


def test_the_summary_has_ratios_errors_and_barriers(tmp_path: Path) -> None:
    def times(ours: float, peer: float) -> dict[str, Any]:
        pairs = {"fastrnn": ours, "cudnn": peer}
        return {f"{name} {mode}": {"ms": ms} for name, ms in pairs.items() for mode in ("infer", "train")}

    facts = [{"device": "H0", "driver": 1, "commit": "abc"}]
    rows = {
        "lstm-float32-T50B1H128": {"result": {"times": times(1, 2)}},
        "lstm-float32-T50B16H128": {"result": {"times": times(1, 8)}},
        **{f"gru-T{k}": {"error": "ValueError: no"} for k in range(7)},
    }
    (tmp_path / "grid.json").write_text(json.dumps({"facts": facts, "rows": rows}))
    (tmp_path / "barriers.json").write_text(json.dumps({"facts": facts, "rows": {"flags 8": {"result": {"us": 1.25}}}}))
    text = summary.text(tmp_path, ("check", "barriers", "grid"))
    assert "check: not run" in text
    assert "grid: 2 of 9 rows" in text
    assert "H0, driver 1, commit abc" in text
    assert "lstm-float32" in text
    assert "infer 4.00 (2.00 to 8.00), train 4.00 (2.00 to 8.00)" in text
    assert "1.25 us a barrier" in text
    assert text.count("failed:") == summary.MOST_ERRORS
    assert "and 2 more" in text


def test_the_numbers_of_blocks_fit_the_device() -> None:
    assert barriers.block_counts("flags", 132) == [2, 8, 16, 32, 64, 132]
    assert barriers.block_counts("counter", 10) == [2, 8, 10]
    assert barriers.block_counts("cluster", 8) == [2, 4, 8]


def fake_device(milliseconds: list[float]) -> Any:
    """CuPy as far as the clock and the facts need it: each event that is recorded takes the next time."""
    ahead = iter(milliseconds)

    class Event:
        waited = False

        def record(self) -> None:
            self.at = next(ahead)

        def synchronize(self) -> None:
            self.waited = True

    def elapsed(start: Any, stop: Any) -> float:
        assert stop.waited, "an event that may not have happened yet"
        return float(np.float32(stop.at - start.at))

    properties = {
        "name": b"H0",
        "major": 9,
        "minor": 0,
        "multiProcessorCount": 132,
        "totalGlobalMem": 1,
        "l2CacheSize": 2,
    }
    runtime = SimpleNamespace(
        getDeviceProperties=lambda number: properties, driverGetVersion=lambda: 13000, runtimeGetVersion=lambda: 13000
    )
    here = SimpleNamespace(id=0)
    return SimpleNamespace(
        cuda=SimpleNamespace(Event=Event, get_elapsed_time=elapsed, runtime=runtime, Device=lambda: here)
    )


def test_the_clock_adds_up_short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_device([0.0, 1e6, 1e6 + 0.0625, 1e6 + 0.125]))
    now = device.clock()
    first, second, third = now(), now(), now()
    assert first == pytest.approx(1000)
    assert second - first == pytest.approx(6.25e-5, rel=1e-6)
    assert third - second == pytest.approx(6.25e-5, rel=1e-6)


def test_the_facts_name_device_versions_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_device([]))
    facts = device.facts()
    assert facts["device"] == "H0"
    assert facts["compute_capability"] == "9.0"
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert json.loads(json.dumps(facts)) == facts


def test_contestants_are_called_before_they_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), list[str]()

    def call(name: str, seconds: float) -> None:
        calls.append(name)
        clock.now += seconds

    monkeypatch.setattr(device, "clock", lambda: clock)
    times = device.times({"a": lambda: call("a", 0.003), "b": lambda: call("b", 0.006)})
    assert calls[: 2 * device.CALLS_BEFORE] == ["a"] * device.CALLS_BEFORE + ["b"] * device.CALLS_BEFORE
    assert times["a"] == {"ms": pytest.approx(3), "spread_ms": pytest.approx(0, abs=1e-9)}
    assert times["b"]["ms"] == pytest.approx(6)


# cuDNN by ctypes


def test_argument_types_are_read_from_the_prototypes() -> None:
    types = cudnn_library.prototypes()
    assert {name: len(of) for name, of in types.items()} == {
        "cudnnDestroy": 1, "cudnnDestroyTensorDescriptor": 1, "cudnnDestroyDropoutDescriptor": 1,
        "cudnnDestroyRNNDescriptor": 1, "cudnnDestroyRNNDataDescriptor": 1,
        "cudnnCreate": 1, "cudnnSetStream": 2, "cudnnCreateTensorDescriptor": 1, "cudnnSetTensorNdDescriptor": 5,
        "cudnnCreateDropoutDescriptor": 1, "cudnnSetDropoutDescriptor": 6, "cudnnCreateRNNDescriptor": 1,
        "cudnnSetRNNDescriptor_v8": 15, "cudnnCreateRNNDataDescriptor": 1, "cudnnSetRNNDataDescriptor": 8,
        "cudnnBuildRNNDynamic": 3, "cudnnGetRNNTempSpaceSizes": 6, "cudnnGetRNNWeightSpaceSize": 3,
        "cudnnGetRNNWeightParams": 10, "cudnnRNNForward": 20, "cudnnRNNBackwardData_v8": 22,
        "cudnnRNNBackwardWeights_v8": 16,
    }  # fmt: skip
    pointer, number = ctypes.c_void_p, ctypes.c_int
    assert types["cudnnSetDropoutDescriptor"] == [
        pointer, pointer, ctypes.c_float, pointer, ctypes.c_size_t, ctypes.c_ulonglong,
    ]  # fmt: skip
    assert types["cudnnSetRNNDataDescriptor"] == [pointer, number, number, number, number, number, pointer, pointer]
    assert types["cudnnGetRNNWeightParams"][2:6] == [ctypes.c_int32, ctypes.c_size_t, pointer, ctypes.c_int32]
    with pytest.raises(ValueError, match="prototype: cannot read"):
        cudnn_library.prototypes("cudnnStatus_t cudnnX(what is->this);")


class Memory:
    """Bytes of the host in the place of the device's."""

    def __init__(self, size: int) -> None:
        self.bytes = np.zeros(max(size, 1), np.uint8)
        self.data = SimpleNamespace(ptr=self.bytes.ctypes.data, copy_from_host=self._copy)

    def _copy(self, source: Any, size: int) -> None:
        ctypes.memmove(self.bytes.ctypes.data, source, size)

    def fill(self, value: int) -> None:
        self.bytes.fill(value)


class Function:
    """A function of the fake: converts its arguments as ctypes does, and notes them by their names in the prototype."""

    def __init__(self, fake: "FakeCudnn", name: str) -> None:
        self.fake, self.name, self.argtypes, self.restype = fake, name, None, None

    def __call__(self, *args: Any) -> int:
        text = cudnn_library.PROTOTYPES.split(f" {self.name}(")[1].split(")")[0]
        names = [part.strip().rstrip("[]").split()[-1].lstrip("*") for part in text.split(",")]
        assert self.argtypes is not None
        assert len(args) == len(names) == len(self.argtypes), self.name
        for argument, kind in zip(args, self.argtypes, strict=True):
            kind.from_param(argument) if kind is ctypes.c_void_p else kind(argument)
        given = dict(zip(names, args, strict=True))
        self.fake.calls.append((self.name, given))
        return self.fake.answer(self.name, given)


class FakeCudnn:
    """libcudnn as far as sizes and addresses go: gate by gate, weights before biases, in 16-bit elements."""

    def __init__(self, cell: str, hidden: int) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.gates, self.hidden, self.refuses = cudnn_library.GATES[cell], hidden, ""
        self.cudnnGetErrorString = lambda status: b"CUDNN_STATUS_NOT_SUPPORTED"  # cuDNN's name

    def __getattr__(self, name: str) -> Function:
        function = Function(self, name)
        setattr(self, name, function)
        return function

    def answer(self, name: str, given: dict[str, Any]) -> int:
        if name == self.refuses:
            return 3000
        if name.startswith("cudnnCreate"):
            next(iter(given.values()))._obj.value = len(self.calls)
        matrix = 2 * self.hidden**2
        if name == "cudnnGetRNNWeightSpaceSize":
            given["weightSpaceSize"]._obj.value = 2 * self.gates * (matrix + 2 * self.hidden)
        if name == "cudnnGetRNNTempSpaceSizes":
            given["workSpaceSize"]._obj.value, given["reserveSpaceSize"]._obj.value = 64, 32 * given["fwdMode"]
        if name == "cudnnGetRNNWeightParams":
            start, gate = given["weightSpace"], given["linLayerID"]
            given["mAddr"]._obj.value = start + gate * matrix
            given["bAddr"]._obj.value = start + 2 * self.gates * matrix + gate * 2 * self.hidden
        return 0


def test_cudnn_is_given_what_its_prototypes_name() -> None:
    fake = FakeCudnn("lstm", 6)
    library = cudnn_library.Library(fake)
    rnn = cudnn_library.Rnn(library, Memory, "lstm", "float16", "persist static", (5, 3, 6, 6, 1))
    rnn.forward(1000, 2000, training=True)
    rnn.backward(1000, 2000, 3000, 4000)
    rnn.forward(1000, 2000, training=False)
    given = dict(fake.calls)  # the last call of each
    described = given["cudnnSetRNNDescriptor_v8"]
    wanted = {"algo": 1, "cellMode": 2, "biasMode": 2, "dirMode": 0, "inputMode": 0, "dataType": 2, "mathPrec": 0,
              "mathType": 1, "inputSize": 6, "hiddenSize": 6, "projSize": 6, "numLayers": 1, "auxFlags": 1}  # fmt: skip
    assert {name: described[name] for name in wanted} == wanted
    sequence = given["cudnnSetRNNDataDescriptor"]
    assert (sequence["maxSeqLength"], sequence["batchSize"], sequence["vectorSize"]) == (5, 3, 6)
    assert list(sequence["seqLengthArray"]) == [5, 5, 5]
    state = given["cudnnSetTensorNdDescriptor"]
    assert (list(state["dimA"]), list(state["strideA"])) == ([1, 3, 6], [18, 6, 1])
    assert "cudnnBuildRNNDynamic" not in given
    forwards = [arguments for name, arguments in fake.calls if name == "cudnnRNNForward"]
    assert [(f["fwdMode"], f["x"], f["y"], f["reserveSpaceSize"]) for f in forwards] == [
        (1, 1000, 2000, 32), (0, 1000, 2000, 0),
    ]  # fmt: skip
    data, weights = given["cudnnRNNBackwardData_v8"], given["cudnnRNNBackwardWeights_v8"]
    assert (data["y"], data["dy"], data["dx"]) == (2000, 3000, 4000)
    assert (weights["addGrad"], weights["x"], weights["y"]) == (0, 1000, 2000)
    assert weights["dweightSpace"] == rnn.weight_gradient.data.ptr != data["weightSpace"]
    assert all(a["weightSpaceSize"] == rnn.weights == 8 * (72 + 12) for a in (data, weights, *forwards))
    assert np.frombuffer(rnn.lengths.bytes, np.int32).tolist() == [5, 5, 5]


def test_cudnns_weights_are_torchs_gate_by_gate() -> None:
    for cell, gates in cudnn_library.GATES.items():
        rnn = cudnn_library.Rnn(
            cudnn_library.Library(FakeCudnn(cell, 4)), Memory, cell, "float16", "standard", (2, 1, 4, 4, 1)
        )
        places = rnn.places(rnn.weight_space)
        start, matrix = rnn.weight_space.data.ptr, 2 * 4 * 4
        assert places[0] == ("weight_ih_l0", 0, start)
        assert places[2 * gates] == ("weight_hh_l0", 0, start + gates * matrix)
        assert places[-1] == ("bias_hh_l0", gates - 1, start + 2 * gates * matrix + (2 * gates - 1) * 8)
        assert [name for name, _, _ in places].count("bias_ih_l0") == gates


def left(fake: FakeCudnn) -> list[str]:
    """What was made by the fake and not destroyed, in the order of making."""
    made = list[tuple[str, int]]()
    for name, given in fake.calls:
        if name.startswith("cudnnCreate"):
            made.append((name.removeprefix("cudnnCreate"), next(iter(given.values()))._obj.value))
        if name.startswith("cudnnDestroy"):
            made.remove((name.removeprefix("cudnnDestroy"), next(iter(given.values())).value))
    return [kind for kind, _ in made]


def test_cudnns_handle_and_descriptors_are_destroyed() -> None:
    fake = FakeCudnn("lstm", 4)
    with cudnn_library.Rnn(cudnn_library.Library(fake), Memory, "lstm", "float16", "standard", (2, 1, 4, 4, 1)) as rnn:
        alive = ["", "DropoutDescriptor", "RNNDescriptor", "RNNDataDescriptor", "RNNDataDescriptor", "TensorDescriptor"]
        assert left(fake) == alive
        rnn.places(rnn.weight_space)
        assert left(fake) == alive
    assert left(fake) == []
    assert fake.calls[-1][0] == "cudnnDestroy"  # the handle last


def test_what_cudnn_refuses_is_an_error_with_its_name() -> None:
    fake = FakeCudnn("gru", 4)
    fake.refuses = "cudnnBuildRNNDynamic"
    with pytest.raises(RuntimeError, match=r"cudnnBuildRNNDynamic: CUDNN_STATUS_NOT_SUPPORTED \(3000\)"):
        cudnn_library.Rnn(cudnn_library.Library(fake), Memory, "gru", "float32", "persist dynamic", (2, 1, 4, 4, 1))
    assert left(fake) == []


# The comparison, on torch's CPU and the stand-in for CuPy


@pytest.fixture
def on_the_host(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is timed, by name; each is called once."""
    calls: dict[str, Any] = {}

    def times(given: dict[str, Any]) -> dict[str, Any]:
        for name, call in given.items():
            calls[name] = call()
        return {name: {"ms": 1.0} for name in given}

    # torch.testing._internal, which another test module imports, forbids flags outside a `with` to the whole process
    monkeypatch.setitem(torch.backends.flags_frozen.__globals__, "__allow_nonbracketed_mutation_flag", True)
    monkeypatch.setattr(compare, "DEVICE", "cpu")
    monkeypatch.setattr(compare, "to_cupy", lambda tensor: cupy_standin.ndarray(tensor.detach().numpy().copy()))
    monkeypatch.setattr(compare, "to_torch", lambda array: torch.tensor(array._host).double())
    monkeypatch.setattr(compare, "release", lambda: None)
    monkeypatch.setattr(device, "times", times)
    return calls


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("more", [{}, {"layers": 2, "lengths": "triangular"}], ids=["plain", "lengths"])
def test_a_comparison_checks_and_times(
    cell: str, more: Any, on_the_host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "CHECKED_STEPS", 5)
    monkeypatch.setattr(compare, "CHECKED_ROWS", 2)
    monkeypatch.setattr("fastrnn.cuda.choice.serving", lambda cell, shape: ["step"])  # else their kernels are built
    result = compare.compare(Case(cell, "float32", 7, 3, 9, **more))
    names = {f"{who} {mode}" for who in ("fastrnn", "cudnn") for mode in ("infer", "train")}
    assert names <= set(on_the_host) == set(result["times"])
    assert len(on_the_host) == (8 if more else 4)
    assert all(0 < one["error"] < 1e-5 for one in result["errors"].values())
    ours, theirs = on_the_host["fastrnn infer"][0], on_the_host["cudnn infer"]
    np.testing.assert_allclose(ours._host, theirs.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        on_the_host["fastrnn train"].x._host, on_the_host["cudnn train"][1].numpy(), rtol=0, atol=1e-5
    )


def test_a_row_is_timed_by_all_plans_that_serve_it(on_the_host: dict[str, Any]) -> None:
    from fastrnn.cuda import choice

    with choice.forced("block"):
        result = compare.compare(Case("lstm", "float32", 6, 2, 5))
    names = [f"fastrnn{by}" for by in ("", " by grid", " by step")]
    assert {f"{name} {mode}" for name in names for mode in ("infer", "train")} <= set(result["times"])
    assert {mode["plan"] for mode in result["plans"].values()} == {"block"}
    assert set(result["errors"]) == {*names, "cudnn"}
    by_block, *others = (on_the_host[f"{name} infer"][0]._host for name in names)
    for other in others:
        np.testing.assert_allclose(by_block, other, rtol=0, atol=1e-6)
    assert {"onchip_forward", "step_forward"} <= set(cupy_standin.launches)
    chosen = {"plan": "block", "model_ms": 0.25, "others": ["grid", "step"]}
    line = next(iter(summary._planned({**result, "plans": {"infer": chosen}})))
    assert line == "infer block 1.000 ms (25% by the model), grid 1.000 ms, step 1.000 ms"


@pytest.mark.parametrize("wrong", ["y", "d x", "d weight_hh_l0", "d bias_ih_l0", compare.INFERRED])
def test_no_time_is_taken_of_a_wrong_result(
    wrong: str, on_the_host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = compare.Ours.results

    def off(self: Any, d_y: Any) -> dict[str, Any]:
        got = results(self, d_y)
        got[wrong] = got[wrong] * (1 + 1e-3)
        return got

    monkeypatch.setattr(compare.Ours, "results", off)
    with pytest.raises(AssertionError, match=f"wrong: {wrong} off by 1.0e-03, cuDNN by .*; no time was taken"):
        compare.compare(Case("lstm", "float32", 6, 2, 5))
    assert on_the_host == {}


def test_results_are_judged_beside_the_peers() -> None:
    compare.judge((2e-2, "y"), (1e-2, "y"), "bfloat16")
    with pytest.raises(AssertionError, match="wrong"):
        compare.judge((2e-4, "y"), (1e-6, "y"), "float32")
    with pytest.raises(AssertionError, match="wrong"):
        compare.judge((float("nan"), "y"), (1e-6, "y"), "float32")
    with pytest.raises(AssertionError, match="cuDNN itself is off"):
        compare.judge((1e-6, "y"), (0.5, "y"), "float32")
