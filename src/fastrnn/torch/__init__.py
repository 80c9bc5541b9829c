"""torch.nn's recurrent layers on fastrnn's kernels: change the import, keep model, optimizer and checkpoints.

    from fastrnn.torch import LSTM          # instead of torch.nn
    fastrnn.torch.replace(model)            # or: every nn.RNN, nn.LSTM, nn.GRU and cell of a model, in place

Which path runs a call:

- eager, outputs and first gradients: the compiled kernels, on the tensors' own memory;
- torch.compile, torch.export, meta and fake tensors, dispatch modes: the same kernels as one custom operator, whose
  backward pass runs the forward pass again; it has no double backward;
- double backward, forward-mode tangents, torch.func transforms: a loop of torch operations over the steps (steps.py),
  right by value and slow.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastrnn.torch: expected PyTorch, got none; install fastrnn[torch]") from error

from fastrnn.torch.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from fastrnn.torch.replacement import Report, replace, restore

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Report", "replace", "restore"]
