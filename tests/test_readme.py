"""Every Python example of the README runs as a newcomer would run it and prints what it says it prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastrnn import support
from fastrnn.bench import ours, report
from fastrnn.cells import CELLS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_blocks(markdown: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL)


def claimed_lines(block: str) -> list[str]:
    """What the comments `# prints: ...` of a block claim, in order."""
    return re.findall(r"# prints: (.+)$", block, re.MULTILINE)


def run_block(block: str, folder: Path) -> list[str]:
    """Lines printed by `block`, run alone in an empty folder, warnings being errors."""
    (folder / "example.py").write_text(block, encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-W", "error", "example.py"]
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


BLOCKS = python_blocks(README)


def test_readme_has_examples_with_claims() -> None:
    assert len(BLOCKS) >= 2
    assert any(claimed_lines(block) for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{n}" for n in range(1, len(BLOCKS) + 1)])
def test_example_prints_what_it_claims(block: str, tmp_path: Path) -> None:
    for library in ("torch", "onnx"):
        if f"import {library}" in block:
            pytest.importorskip(library)
    assert run_block(block, tmp_path) == claimed_lines(block)


def test_a_false_claim_and_a_failing_example_are_caught(tmp_path: Path) -> None:
    good, false, failing = python_blocks(
        "```python\nprint(1 + 1)  # prints: 2\n```\n```python\nprint(1 + 1)  # prints: 3\n```\n```python\n1 / 0\n```\n"
    )
    assert run_block(good, tmp_path) == claimed_lines(good)
    assert run_block(false, tmp_path) != claimed_lines(false)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_block(failing, tmp_path)


def test_benchmark_section_is_marked_once() -> None:
    assert re.findall(r"<!-- bench:\w+ -->", README) == ["<!-- bench:begin -->", "<!-- bench:end -->"]


def test_the_table_of_options_is_that_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: cell for name, cell in CELLS.items() if name in ours.LAYERS}  # without the examples' cells
    monkeypatch.setattr(support, "CELLS", own)
    wanted = report.insert(README, support.table(), support.BEGIN, support.END)
    assert wanted == README, "fill it by `fastrnn support --readme README.md`"


def test_the_table_of_options_knows_registered_cells_and_gives_every_hole_a_reason() -> None:
    found = {(entry.cell, entry.option): entry for entry in support.entries()}
    assert {cell for cell, _ in found} == set(CELLS)
    assert found["lstm", "zoneout"].backends == ("reference", "cpu", "cuda")
    assert found["gru", "proj_size"].backends == ()
    assert all(len(entry.backends) + len(entry.reasons) == 3 for entry in found.values())
    assert all(all(entry.reasons.values()) for entry in found.values())
