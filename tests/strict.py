"""A stand-in for CuPy that computes with NumPy but refuses NumPy's own functions and arrays, as CuPy does.

`installed()` puts it in the place of the module `cupy`: what works on its arrays calls no `np.*` on them.
"""

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np


class ndarray:  # noqa: N801 - CuPy's name
    """An array on a device that NumPy cannot see."""

    __array_ufunc__ = None  # np_array * this and np.exp(this) raise TypeError

    def __init__(self, values: Any) -> None:
        self._host = np.asarray(values)

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __array_function__(self, function: Any, *_: object) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called on an array of another module")

    @property
    def device(self) -> AbstractContextManager[None]:
        return nullcontext()

    def get(self) -> np.ndarray:
        return self._host.copy()

    def __getattr__(self, name: str) -> Any:
        return _wrap(getattr(self._host, name))

    def __getitem__(self, index: Any) -> Any:
        return _out(self._host[_in(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[_in(index)] = _in(value)

    def __len__(self) -> int:
        return len(self._host)

    def __bool__(self) -> bool:
        return bool(self._host)

    def __float__(self) -> float:
        return float(self._host)

    def __int__(self) -> int:
        return int(self._host)


def _in(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_in(v) for v in value)
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("a NumPy array where one of the device is expected")
    return value._host if isinstance(value, ndarray) else value


def _out(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_out(v) for v in value)
    return ndarray(value) if isinstance(value, (np.ndarray, np.generic)) else value


def _wrap(attribute: Any) -> Any:
    if not callable(attribute) or isinstance(attribute, type):
        return _out(attribute)

    def call(*arguments: Any, **options: Any) -> Any:
        out = options.get("out")
        result = attribute(*_in(arguments), **{k: _in(v) for k, v in options.items()})
        return out if out is not None else _out(result)

    return call


def _binary(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: _out(function(_in(a), _in(b)))


def _reflected(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: _out(function(_in(b), _in(a)))


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: ndarray, other: Any) -> ndarray:
        function(self._host, _in(other))
        return self

    return call


def _unary(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a: _out(function(a._host))


for _name in ("add", "sub", "mul", "truediv", "matmul", "and_", "or_", "pow", "mod", "rshift", "xor"):
    setattr(ndarray, f"__{_name.rstrip('_')}__", _binary(getattr(operator, _name)))
    setattr(ndarray, f"__r{_name.rstrip('_')}__", _reflected(getattr(operator, _name)))
for _name in ("lt", "le", "eq", "ne", "gt", "ge"):
    setattr(ndarray, f"__{_name}__", _binary(getattr(operator, _name)))
for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(ndarray, f"__{_name}__", _in_place(getattr(operator, _name)))
for _name in ("neg", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", _unary(getattr(operator, _name)))


class _Add:
    """cupy.add: callable, and with reduceat."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return _wrap(np.add)(*arguments, **options)

    reduceat = staticmethod(_wrap(np.add.reduceat))


@contextmanager
def installed() -> Iterator[ModuleType]:
    """Yield a module that stands in for cupy while the `with` block runs."""
    before, module = sys.modules.get("cupy"), ModuleType("cupy")
    module.__getattr__ = lambda name: _wrap(getattr(np, name))  # type: ignore[method-assign]
    module.ndarray, module.add, module.inf = ndarray, _Add(), np.inf  # type: ignore[attr-defined]
    module.asarray = module.array = lambda values, *_: values if isinstance(values, ndarray) else ndarray(values)
    module.asnumpy = lambda array: array.get()  # type: ignore[attr-defined]
    sys.modules["cupy"] = module
    try:
        yield module
    finally:
        del sys.modules["cupy"]
        if before is not None:
            sys.modules["cupy"] = before
