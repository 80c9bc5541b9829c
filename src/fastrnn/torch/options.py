"""The core's options that torch.nn lacks: keywords of the constructors, the parameters they bring, how they show."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from fastrnn.torch.spec import KINDS

OF_LAYERS = (
    "peephole", "coupled", "recurrent", "layer_norm", "zoneout", "recurrent_dropout", "save", "precision",
)  # fmt: skip
OF_CELLS = ("peephole", "coupled", "recurrent", "layer_norm", "zoneout")  # a step knows no sequence
SHOWN = ("peephole", "coupled", "recurrent", "layer_norm", "zoneout", "recurrent_dropout", "save_mode")
MASK = "recurrent_mask"  # name of the mask's buffer


def known(mode: str, options: dict[str, Any], names: tuple[str, ...]) -> None:
    """Refuse keywords that are no option of this kind of module."""
    of_kind = inspect.signature(KINDS[mode][0]).parameters
    for name in options:
        if name not in names or name not in of_kind:
            raise TypeError(f"{name}: expected one of torch's arguments or fastrnn's options, got an unknown keyword")


class Options:
    """A module that may have such options; without them it has torch's parameters alone.

    Each option is an attribute by the core's name (save: `save_mode`). A mask is kept in the buffer `recurrent_mask`
    [H, H], which state_dict leaves out as the core's does, and `recurrent` is then "mask".
    """

    # of the class, since `replace` makes these modules out of torch's
    peephole: bool | str = False
    coupled: bool = False
    recurrent: str = "full"
    layer_norm: bool = False
    zoneout: float | tuple[float, float] = 0.0
    recurrent_dropout: float = 0.0
    save_mode: str = "gates"

    def _adopt(self, mode: str, torchs: dict[str, Any], given: dict[str, Any]) -> list[list[str]]:
        """Take the options, by the core's own rules, and parameters of the names, shapes and order of its layer.

        Args:
            mode: key of KINDS.
            torchs: arguments of the core's layer that torch has too.
            given: the options.

        Returns:
            The names, one entry a layer and direction.

        Raises:
            ValueError, TypeError: as the core's layer would.
        """
        module: Any = self
        kind, own = KINDS[mode]
        mask = given.get("recurrent")
        if isinstance(mask, Tensor):
            given = {**given, "recurrent": mask.detach().cpu().numpy()}
        core = kind._without_parameters(**torchs, **own, **given, seed=0)
        for name in SHOWN:
            if hasattr(core, name):
                setattr(self, name, getattr(core, name))
        first = next(module.parameters())
        if not isinstance(core.recurrent, str):
            self.recurrent = "mask"
            module.register_buffer(MASK, torch.tensor(core.recurrent, device=first.device), persistent=False)
        numbered = isinstance(self, torch.nn.RNNBase)
        names = [[n if numbered else n.removesuffix("_l0") for n in of if n is not None] for of in core._names()]
        for name in list(module._parameters):
            if module._parameters[name] is not None:
                del module._parameters[name]  # so that the order becomes the core's
        every = (name for of in names for name in of)
        for name, (_, shape) in zip(every, core._shapes(), strict=True):
            empty = torch.empty(shape, device=first.device, dtype=first.dtype)
            setattr(self, name, torch.nn.Parameter(empty))
        return names

    def reset_parameters(self) -> None:
        """Draw torch's initial values; normalisation starts with gains of one, a mask's zeros are zeros."""
        super().reset_parameters()  # type: ignore[misc]
        with torch.no_grad():
            for name, parameter in self._parameters.items():  # type: ignore[attr-defined]
                if name.startswith("norm"):
                    parameter.fill_(0.0 if name.startswith("norm_c_bias") else 1.0)
                elif name.startswith("weight_hh") and self.recurrent == "mask":
                    parameter.copy_(self._masked(parameter))

    def _masked(self, weight: Tensor) -> Tensor:
        """U with zeros where the mask has them, whatever stands there, as an operation that gradients go through."""
        mask = getattr(self, MASK)
        return torch.where(mask, weight.unflatten(0, (-1, mask.shape[0])), 0).flatten(0, 1)

    def extra_repr(self) -> str:
        """torch's, and the options that differ from their defaults."""
        shown = [super().extra_repr()]  # type: ignore[misc]
        for name in SHOWN:
            value = getattr(self, name)
            if value != getattr(Options, name):
                shown.append(f"{name.removesuffix('_mode')}={value!r}")
        return ", ".join(shown)
