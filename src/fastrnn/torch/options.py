"""The core's options that torch.nn lacks: keywords of the constructors, parameters, initial values, how they show."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from fastrnn.cells import CELLS
from fastrnn.torch.spec import KINDS

OF_CELLS = ("peephole", "coupled", "recurrent", "layer_norm", "zoneout", "init", "forget_bias")  # a step is no sequence
OF_LAYERS = (*OF_CELLS, "recurrent_dropout", "save", "precision")
OF_CALLS = ("peephole", "coupled", "recurrent", "layer_norm", "zoneout", "recurrent_dropout", "save_mode")
OF_VALUES = ("init", "forget_bias")  # what only the initial values depend on
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
    init: str = "uniform"
    forget_bias: float | None = None
    _incomplete = False  # while the parameters are torch's and the options' are still to come

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
        for name in OF_CALLS:
            if hasattr(core, name):
                setattr(self, name, getattr(core, name))
        for name in OF_VALUES:
            setattr(self, name, core._arguments.get(name))
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
        del self._incomplete
        return names

    def reset_parameters(self) -> None:
        """Draw initial values from torch's generator: torch's own with init="uniform", else by fastrnn's rules.

        Normalisation starts with gains of one, a mask's zeros are zeros.
        """
        if self._incomplete:  # so that nothing is drawn twice
            return
        module: Any = self
        if self.init == "uniform":
            super().reset_parameters()  # type: ignore[misc]
        with torch.no_grad():
            for name, parameter in module._parameters.items():
                if name.startswith("norm"):
                    parameter.fill_(0.0 if name.startswith("norm_c_bias") else 1.0)
                elif parameter is not None and self.init != "uniform":
                    _initialise(name, parameter, module.hidden_size, self.init)
                if name.startswith("weight_hh") and self.recurrent == "mask":
                    parameter.copy_(self._masked(parameter))
                if name.startswith("bias") and self.forget_bias is not None:
                    forget = CELLS["lstm_coupled" if self.coupled else "lstm"].gates.index("f")
                    part = parameter.split(module.hidden_size)[forget]
                    part.fill_(self.forget_bias if name.startswith("bias_ih") else 0.0)

    def _masked(self, weight: Tensor) -> Tensor:
        """U with zeros where the mask has them, whatever stands there, as an operation that gradients go through."""
        mask = getattr(self, MASK)
        return torch.where(mask, weight.unflatten(0, (-1, mask.shape[0])), 0).flatten(0, 1)

    def extra_repr(self) -> str:
        """torch's, and the options that differ from their defaults."""
        shown = [super().extra_repr()]  # type: ignore[misc]
        for name in (*OF_CALLS, *OF_VALUES):
            value = getattr(self, name)
            if value != getattr(Options, name):
                shown.append(f"{name.removesuffix('_mode')}={value!r}")
        return ", ".join(shown)


def _initialise(name: str, parameter: Tensor, hidden_size: int, init: str) -> None:
    """Fill a parameter as fastrnn.initialisation does, with values from torch's generator; not with "uniform"."""
    recurrent = name.startswith("weight_hh")
    if recurrent and parameter.dim() == 1:
        _diagonal(parameter, hidden_size, init)
    elif parameter.dim() == 1 or name.startswith(("weight_p", "weight_ch")):
        parameter.zero_()
    else:
        fill = {"identity": torch.nn.init.eye_, "orthogonal": torch.nn.init.orthogonal_}.get(init if recurrent else "")
        rows = parameter.shape[0] if name.startswith("weight_hr") else hidden_size
        for gate in parameter.split(rows):
            (fill or torch.nn.init.xavier_uniform_)(gate)


def _diagonal(parameter: Tensor, hidden_size: int, init: str) -> None:
    """The diagonal of U in every gate: xavier's bound of the full matrix, random signs, or ones."""
    if init == "xavier":
        bound = (3 / hidden_size) ** 0.5
        parameter.uniform_(-bound, bound)
    elif init == "orthogonal":
        parameter.bernoulli_().mul_(2).sub_(1)
    else:
        parameter.fill_(1.0)
