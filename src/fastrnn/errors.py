"""Errors that are fastrnn's own; everything else raises the built-in classes."""


class ShapeError(ValueError, RuntimeError):
    """An array has the wrong shape; also a RuntimeError, which is what torch.nn raises for it."""


class TensorError(TypeError, ValueError, RuntimeError):
    """A torch tensor has the wrong dtype: a TypeError here, a ValueError or a RuntimeError in torch.nn."""
