"""The files under examples/ run as they stand and reach what they show."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def printed(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


LEAST = {
    "one_to_one": 0.97,
    "one_to_many": 1.0,
    "many_to_one": 0.97,
    "many_to_many_aligned": 1.0,
    "many_to_many_delayed": 0.95,
}


@pytest.mark.parametrize("name", list(LEAST))
def test_each_shape_is_learnt(name, capsys):
    output = printed(name, capsys)
    share = float(re.findall(r"([\d.]+)%$", output, re.MULTILINE)[-1]) / 100
    assert share >= LEAST[name], output


def test_the_walkthrough_holds_to_the_printed_digits(capsys):
    output = printed("walkthrough", capsys)
    assert "h_1 = [0.537, -0.380]   y_1 = 0.714" in output
    assert "h_2 = [0.514, 0.419]   y_2 = 0.618" in output
    assert float(re.search(r"largest difference: (\S+)", output)[1]) <= 4e-16
    by_backward, by_differences = re.search(r"= (\S+) by backward, (\S+) by differences", output).groups()
    assert by_backward == by_differences != "0.000000"
    assert "up right right down down right right up up up left: out after 11 moves" in output
    assert re.search(r"at moves 0 and 4 it sees the same, up and down are right", output)
    ours, linear, naive = map(float, re.search(r": (\S+) GRU, (\S+) linear model, (\S+) the", output).groups())
    assert ours < linear < naive


def test_every_example_is_tested_and_named_in_the_readme():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*LEAST, "walkthrough", "ddp_charlm", "word_lm"}  # the last two: test_torch_examples.py
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"examples/{name}.py" in readme for name in names)
