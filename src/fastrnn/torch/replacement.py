"""Swap torch's recurrent modules for fastrnn's, and back, in a model that exists."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fastrnn import validation
from fastrnn.torch import modules
from fastrnn.torch.spec import device_of, dtypes, on_gpu

OURS: dict[type, type] = {
    torch.nn.RNN: modules.RNN, torch.nn.LSTM: modules.LSTM, torch.nn.GRU: modules.GRU,
    torch.nn.RNNCell: modules.RNNCell, torch.nn.LSTMCell: modules.LSTMCell, torch.nn.GRUCell: modules.GRUCell,
}  # fmt: skip
THEIRS = {ours: theirs for theirs, ours in OURS.items()}
MARK = "_fastrnn_replaced"  # in the module's __dict__: it travels with copies and pickles, and restore looks for it


@dataclass
class Report:
    """What `replace` or `restore` did: names of the modules swapped, and of those left alone with the reason."""

    swapped: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"swapped: {', '.join(self.swapped) or 'nothing'}"]
        return "\n".join(lines + [f"kept {name}: {reason}" for name, reason in self.kept.items()])


def replace(model: torch.nn.Module) -> Report:
    """Let every nn.RNN, nn.LSTM, nn.GRU and cell in `model`, itself included, run on fastrnn's kernels from now on.

    Each module changes its class and nothing else: it stays the same object with the same parameters, hooks and
    training flag, wherever it is referred to. The empty name in the report is `model` itself.

    Returns:
        What was swapped, and what was not and why.
    """
    report = Report()
    for name, module in model.named_modules():
        reason = _reason(module)
        if reason is None:
            module.__class__ = OURS[type(module)]
            module.__dict__[MARK] = True
            report.swapped.append(name)
        elif reason:
            report.kept[name] = reason
    return report


def restore(model: torch.nn.Module) -> Report:
    """Undo `replace`, also on a copy of the model; modules that were made as fastrnn's stay.

    Returns:
        What was swapped back; what was not and why.
    """
    report = Report()
    for name, module in model.named_modules():
        if MARK not in module.__dict__:
            continue
        if type(module) not in THEIRS:
            report.kept[name] = f"its class is now {type(module).__qualname__}; remove the parametrization first"
            continue
        for attribute in (MARK, *modules.MADE):
            module.__dict__.pop(attribute, None)
        module.__class__ = THEIRS[type(module)]
        report.swapped.append(name)
    return report


def _reason(module: Any) -> str | None:
    """Why a module cannot be swapped: None if it can, "" if it is none of torch's recurrent modules."""
    if isinstance(module, torch.jit.ScriptModule):
        named = getattr(module, "original_name", "") in {kind.__name__ for kind in OURS}
        return "TorchScript calls torch's own code" if named else ""
    kind = next((kind for kind in OURS if isinstance(module, kind) and type(module) not in THEIRS), None)
    if kind is None:
        return ""
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "its parameters are parametrized: replace first, then parametrize"
    if type(module) is not kind:
        return f"{type(module).__qualname__} is a subclass of torch.nn.{kind.__name__}"
    if "forward" in module.__dict__:
        return "its forward was overridden"
    tensors: Any = module
    for parameter in tensors.parameters():
        device = device_of(parameter)
        if parameter.dtype not in dtypes(device):
            return f"no kernels for {parameter.dtype} on {device if on_gpu(device) else 'the CPU'}"
        if device not in ("cpu", "meta"):
            try:
                validation.device(device)
            except (ImportError, RuntimeError, ValueError) as error:
                return f"no kernels for {parameter.device}: {error}"
    return None
