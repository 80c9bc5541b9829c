"""Errors that are fastrnn's own; everything else raises the built-in classes."""


class ShapeError(ValueError, RuntimeError):
    """An array has the wrong shape; also a RuntimeError, which is what torch.nn raises for it."""
