"""The examples that train PyTorch models: the same as one process, the same as torch.nn."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tolerance import assert_close, rounding

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture
def doubles() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


TINY = ["--batch=4", "--window=7", "--hidden=9", "--characters=20000", "--seed=3"]
WORKER = """
import runpy, sys
import torch, torch.distributed as dist
torch.set_default_dtype(torch.float64)
dist.init_process_group("gloo")
module = runpy.run_path(sys.argv[1])
model, losses = module["train"](module["arguments"](sys.argv[3:]))
torch.save((losses, {n: p.grad for n, p in model.named_parameters()}), f"{sys.argv[2]}.{dist.get_rank()}")
dist.destroy_process_group()
"""


@pytest.mark.usefixtures("doubles")
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    steps, window, width = 3, 7, 9
    options = [*TINY, f"--steps={steps}", "--report-every=1"]
    (tmp_path / "worker.py").write_text(WORKER)
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "worker.py", str(EXAMPLES / "ddp_charlm.py"), "out", *options]
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    module = example("ddp_charlm")
    model, losses = module["train"](module["arguments"](options))
    printed = [line for line in run.stdout.splitlines() if line.startswith("step")]
    assert len(printed) == steps, "one process alone reports"
    for rank in range(2):
        found, grads = torch.load(tmp_path / f"out.{rank}")
        allowed = rounding("float64", steps * window, 4 * window * width)
        assert_close("losses", np.array(found), np.array(losses), allowed)
        assert grads.keys() == dict(model.named_parameters()).keys()
        for name, parameter in model.named_parameters():
            assert parameter.grad.abs().max() > 0
            assert_close(name, grads[name].numpy(), parameter.grad.numpy(), allowed)


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("ddp_charlm")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="batch: expected a multiple of the 3 processes, got 4"):
        module["train"](module["arguments"](TINY))


WORDS = [*TINY, "--steps=30", "--words=50", "--report-every=10", "--lr=1"]


@pytest.mark.usefixtures("doubles")
def test_both_lstms_of_the_word_model_give_the_same_losses(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("word_lm")
    curves, printed = [], []
    for lstm in ("torch", "fastrnn"):
        losses, speeds = module["train"](module["arguments"]([*WORDS, "--dropout=0", f"--lstm={lstm}"]))
        assert len(speeds) == 3
        curves.append(np.array(losses))
        printed.append([line.rpartition(",")[0] for line in capsys.readouterr().out.splitlines()])
    assert_close("losses", curves[1], curves[0], rounding("float64", 30 * 7, 8 * 9))
    assert printed[0] == printed[1]
    assert len(printed[0]) == 3
    assert curves[0][-5:].mean() < 0.95 * curves[0][:5].mean()


def test_with_dropout_the_word_model_learns_too() -> None:
    module = example("word_lm")
    for lstm in ("torch", "fastrnn"):
        losses, _ = module["train"](module["arguments"]([*WORDS, "--dropout=0.3", f"--lstm={lstm}"]))
        again, _ = module["train"](module["arguments"]([*WORDS, "--dropout=0.3", f"--lstm={lstm}"]))
        assert losses == again, "the same seed"
        assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
