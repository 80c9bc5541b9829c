"""cuDNN's recurrent networks called directly, so that the algorithm can be chosen; torch has its own rules for that.

The prototypes below are those of cuDNN 9's documentation, and ctypes' argument types are read from them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Callable
from contextlib import ExitStack
from itertools import product
from types import TracebackType
from typing import Any

ALGORITHMS = {"standard": 0, "persist static": 1, "persist dynamic": 2, "persist static small h": 3}
MODES = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}
DTYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 9}
GATES = {"rnn_relu": 1, "rnn_tanh": 1, "lstm": 4, "gru": 3}  # in torch's order: i f g o, r z n
DOUBLE_BIAS, UNIDIRECTIONAL, LINEAR_INPUT, PADDED_IO, SEQUENCE_MAJOR = 2, 0, 0, 1, 0
FLOAT, FMA_MATH, TENSOR_OP_MATH = 0, 3, 1
INFERENCE, TRAINING, GRADIENTS_ADD = 0, 1, 0
LIBRARY = "libcudnn.so.9"

PROTOTYPES = """
cudnnStatus_t cudnnCreate(cudnnHandle_t *handle);
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle);
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t streamId);
cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t *tensorDesc);
cudnnStatus_t cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t tensorDesc);
cudnnStatus_t cudnnSetTensorNdDescriptor(cudnnTensorDescriptor_t tensorDesc, cudnnDataType_t dataType, int nbDims,
    const int dimA[], const int strideA[]);
cudnnStatus_t cudnnCreateDropoutDescriptor(cudnnDropoutDescriptor_t *dropoutDesc);
cudnnStatus_t cudnnDestroyDropoutDescriptor(cudnnDropoutDescriptor_t dropoutDesc);
cudnnStatus_t cudnnSetDropoutDescriptor(cudnnDropoutDescriptor_t dropoutDesc, cudnnHandle_t handle, float dropout,
    void *states, size_t stateSizeInBytes, unsigned long long seed);
cudnnStatus_t cudnnCreateRNNDescriptor(cudnnRNNDescriptor_t *rnnDesc);
cudnnStatus_t cudnnDestroyRNNDescriptor(cudnnRNNDescriptor_t rnnDesc);
cudnnStatus_t cudnnSetRNNDescriptor_v8(cudnnRNNDescriptor_t rnnDesc, cudnnRNNAlgo_t algo, cudnnRNNMode_t cellMode,
    cudnnRNNBiasMode_t biasMode, cudnnDirectionMode_t dirMode, cudnnRNNInputMode_t inputMode, cudnnDataType_t dataType,
    cudnnDataType_t mathPrec, cudnnMathType_t mathType, int32_t inputSize, int32_t hiddenSize, int32_t projSize,
    int32_t numLayers, cudnnDropoutDescriptor_t dropoutDesc, uint32_t auxFlags);
cudnnStatus_t cudnnCreateRNNDataDescriptor(cudnnRNNDataDescriptor_t *rnnDataDesc);
cudnnStatus_t cudnnDestroyRNNDataDescriptor(cudnnRNNDataDescriptor_t rnnDataDesc);
cudnnStatus_t cudnnSetRNNDataDescriptor(cudnnRNNDataDescriptor_t rnnDataDesc, cudnnDataType_t dataType,
    cudnnRNNDataLayout_t layout, int maxSeqLength, int batchSize, int vectorSize, const int seqLengthArray[],
    void *paddingFill);
cudnnStatus_t cudnnBuildRNNDynamic(cudnnHandle_t handle, cudnnRNNDescriptor_t rnnDesc, int miniBatch);
cudnnStatus_t cudnnGetRNNTempSpaceSizes(cudnnHandle_t handle, cudnnRNNDescriptor_t rnnDesc, cudnnForwardMode_t fwdMode,
    cudnnRNNDataDescriptor_t xDesc, size_t *workSpaceSize, size_t *reserveSpaceSize);
cudnnStatus_t cudnnGetRNNWeightSpaceSize(cudnnHandle_t handle, cudnnRNNDescriptor_t rnnDesc, size_t *weightSpaceSize);
cudnnStatus_t cudnnGetRNNWeightParams(cudnnHandle_t handle, cudnnRNNDescriptor_t rnnDesc, int32_t pseudoLayer,
    size_t weightSpaceSize, const void *weightSpace, int32_t linLayerID, cudnnTensorDescriptor_t mDesc, void **mAddr,
    cudnnTensorDescriptor_t bDesc, void **bAddr);
cudnnStatus_t cudnnRNNForward(cudnnHandle_t handle, cudnnRNNDescriptor_t rnnDesc, cudnnForwardMode_t fwdMode,
    const int32_t devSeqLengths[], cudnnRNNDataDescriptor_t xDesc, const void *x, cudnnRNNDataDescriptor_t yDesc,
    void *y, cudnnTensorDescriptor_t hDesc, const void *hx, void *hy, cudnnTensorDescriptor_t cDesc, const void *cx,
    void *cy, size_t weightSpaceSize, const void *weightSpace, size_t workSpaceSize, void *workSpace,
    size_t reserveSpaceSize, void *reserveSpace);
cudnnStatus_t cudnnRNNBackwardData_v8(cudnnHandle_t handle, cudnnRNNDescriptor_t rnnDesc,
    const int32_t devSeqLengths[], cudnnRNNDataDescriptor_t yDesc, const void *y, const void *dy,
    cudnnRNNDataDescriptor_t xDesc, void *dx, cudnnTensorDescriptor_t hDesc, const void *hx, const void *dhy,
    void *dhx, cudnnTensorDescriptor_t cDesc, const void *cx, const void *dcy, void *dcx, size_t weightSpaceSize,
    const void *weightSpace, size_t workSpaceSize, void *workSpace, size_t reserveSpaceSize, void *reserveSpace);
cudnnStatus_t cudnnRNNBackwardWeights_v8(cudnnHandle_t handle, cudnnRNNDescriptor_t rnnDesc, cudnnWgradMode_t addGrad,
    const int32_t devSeqLengths[], cudnnRNNDataDescriptor_t xDesc, const void *x, cudnnTensorDescriptor_t hDesc,
    const void *hx, cudnnRNNDataDescriptor_t yDesc, const void *y, size_t weightSpaceSize, void *dweightSpace,
    size_t workSpaceSize, void *workSpace, size_t reserveSpaceSize, void *reserveSpace);
"""
NUMBERS = {
    "int": ctypes.c_int, "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "size_t": ctypes.c_size_t,
    "float": ctypes.c_float, "unsigned long long": ctypes.c_ulonglong,
}  # fmt: skip
POINTERS = ("Handle_t", "Descriptor_t", "Stream_t")  # ends of the names of opaque pointers; other cudnn types are enums


def prototypes(text: str = PROTOTYPES) -> dict[str, list[Any]]:
    """ctypes' argument types of every function, by name."""
    functions = re.findall(r"cudnnStatus_t (\w+)\(([^)]*)\);", text)
    return {name: [_type(argument) for argument in arguments.split(",")] for name, arguments in functions}


def _type(argument: str) -> Any:
    """The type of one C parameter."""
    found = re.fullmatch(r"(?:const )?([\w ]+?) ?(\**)(\w+)(\[\])?", " ".join(argument.split()))
    if found is None:
        raise ValueError(f"prototype: cannot read {argument!r}")
    base, stars, _, brackets = found.groups()
    if stars or brackets or base.endswith(POINTERS):
        return ctypes.c_void_p
    if base.startswith("cudnn"):
        return ctypes.c_int  # an enumeration
    return NUMBERS[base]


class Library:
    """The functions of libcudnn; each raises if cuDNN reports anything but success."""

    def __init__(self, loaded: Any = None) -> None:
        self._loaded = loaded or _load()
        self._loaded.cudnnGetErrorString.restype = ctypes.c_char_p
        for name, types in prototypes().items():
            function = getattr(self._loaded, name)
            function.argtypes, function.restype = types, ctypes.c_int

    def __getattr__(self, name: str) -> Callable[..., None]:
        function = getattr(self._loaded, f"cudnn{name}")

        def checked(*args: Any) -> None:
            status = function(*args)
            if status:
                raise RuntimeError(f"cudnn{name}: {self._loaded.cudnnGetErrorString(status).decode()} ({status})")

        return checked

    def create(self, kind: str, owner: ExitStack) -> ctypes.c_void_p:
        """A new handle ("") or descriptor of a kind, which its owner will destroy."""
        made = ctypes.c_void_p()
        getattr(self, f"Create{kind}")(ctypes.byref(made))
        owner.callback(getattr(self, f"Destroy{kind}"), made)
        return made


def _load() -> Any:
    """libcudnn; torch, imported before, has usually loaded it already."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:  # not where the system looks: in the package that torch depends on
        package = importlib.util.find_spec("nvidia.cudnn")
        if package is None or not package.submodule_search_locations:
            raise ImportError(f"cuDNN: {error}, and there is no package nvidia.cudnn") from error
        return ctypes.CDLL(f"{package.submodule_search_locations[0]}/lib/{LIBRARY}")


class Rnn:
    """One recurrent network with one algorithm, its weights and memory; layers of one direction, full length.

    A context manager: handle and descriptors are destroyed at the end of its block, or if it cannot be made.

    Args:
        library: cuDNN.
        memory: bytes -> an object that owns so many bytes of the device and has `.data.ptr`; zeros.
    """

    def __init__(
        self, library: Library, memory: Callable[[int], Any], cell: str, dtype: str, algorithm: str,
        sizes: tuple[int, int, int, int, int],
    ) -> None:  # fmt: skip
        self.library, self.memory, self.cell, self.dtype, self.sizes = library, memory, cell, dtype, sizes
        with ExitStack() as made:
            self._make(algorithm, made)
            self._made = made.pop_all()

    def __enter__(self) -> Rnn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._made.close()

    def _make(self, algorithm: str, made: ExitStack) -> None:
        library, memory, cell, dtype = self.library, self.memory, self.cell, self.dtype
        _, batch, inputs, hidden, layers = self.sizes
        self.handle = library.create("", made)
        library.SetStream(self.handle, None)
        dropout = library.create("DropoutDescriptor", made)
        library.SetDropoutDescriptor(dropout, self.handle, 0.0, None, 0, 0)
        self.rnn = library.create("RNNDescriptor", made)
        kind, compute = DTYPES[dtype], DTYPES["float64" if dtype == "float64" else "float32"]
        math = FMA_MATH if dtype in ("float32", "float64") else TENSOR_OP_MATH  # no tf32 behind float32
        library.SetRNNDescriptor_v8(
            self.rnn, ALGORITHMS[algorithm], MODES[cell], DOUBLE_BIAS, UNIDIRECTIONAL, LINEAR_INPUT, kind, compute,
            math, inputs, hidden, hidden, layers, dropout, PADDED_IO,
        )  # fmt: skip
        if algorithm == "persist dynamic":
            library.BuildRNNDynamic(self.handle, self.rnn, batch)
        self.x, self.y = (self._sequence(width, made) for width in (inputs, hidden))
        self.h = self._state(hidden, made)
        self.c = self.h if cell == "lstm" else None
        self.lengths = self._lengths()
        self.weights = self._size("GetRNNWeightSpaceSize")[0]
        self.weight_space, self.weight_gradient = memory(self.weights), memory(self.weights)
        self.space = {mode: self._spaces(mode) for mode in (INFERENCE, TRAINING)}

    def _sequence(self, width: int, made: ExitStack) -> ctypes.c_void_p:
        steps, batch = self.sizes[:2]
        described = self.library.create("RNNDataDescriptor", made)
        lengths = (ctypes.c_int * batch)(*[steps] * batch)
        self.library.SetRNNDataDescriptor(
            described, DTYPES[self.dtype], SEQUENCE_MAJOR, steps, batch, width, lengths, None
        )
        return described

    def _state(self, hidden: int, made: ExitStack) -> ctypes.c_void_p:
        _, batch, _, _, layers = self.sizes
        described, three = self.library.create("TensorDescriptor", made), ctypes.c_int * 3
        shape, strides = three(layers, batch, hidden), three(batch * hidden, hidden, 1)
        self.library.SetTensorNdDescriptor(described, DTYPES[self.dtype], 3, shape, strides)
        return described

    def _lengths(self) -> Any:
        steps, batch = self.sizes[:2]
        return self.memory_of((ctypes.c_int32 * batch)(*[steps] * batch))

    def memory_of(self, array: Any) -> Any:
        """Device memory with the bytes of a ctypes array."""
        owner = self.memory(ctypes.sizeof(array))
        owner.data.copy_from_host(ctypes.cast(array, ctypes.c_void_p), ctypes.sizeof(array))
        return owner

    def _size(self, name: str, *args: Any, count: int = 1) -> list[int]:
        sizes = [ctypes.c_size_t() for _ in range(count)]
        getattr(self.library, name)(self.handle, self.rnn, *args, *map(ctypes.byref, sizes))
        return [size.value for size in sizes]

    def _spaces(self, mode: int) -> list[tuple[int, Any]]:
        """Size and memory of the work space and of the reserve space."""
        return [(n, self.memory(n)) for n in self._size("GetRNNTempSpaceSizes", mode, self.x, count=2)]

    def places(self, space: Any) -> list[tuple[str, int, int]]:
        """For every gate's weights and bias: the name of torch's parameter, the gate's number there, its address."""
        gates, result = GATES[self.cell], []
        with ExitStack() as made:
            unused = [self.library.create("TensorDescriptor", made) for _ in range(2)]
            for layer, number in product(range(self.sizes[4]), range(2 * gates)):
                matrix, bias = ctypes.c_void_p(), ctypes.c_void_p()
                self.library.GetRNNWeightParams(
                    self.handle, self.rnn, layer, self.weights, space.data.ptr, number, unused[0],
                    ctypes.byref(matrix), unused[1], ctypes.byref(bias),
                )  # fmt: skip
                source = "ih" if number < gates else "hh"
                for kind, address in (("weight", matrix), ("bias", bias)):
                    result.append((f"{kind}_{source}_l{layer}", number % gates, int(address.value or 0)))
        return result

    def forward(self, x: int, y: int, training: bool) -> None:
        """Write y at one address from x at another, from a zero state."""
        (work, work_space), (reserve, reserve_space) = self.space[TRAINING if training else INFERENCE]
        self.library.RNNForward(
            self.handle, self.rnn, TRAINING if training else INFERENCE, self.lengths.data.ptr, self.x, x, self.y, y,
            self.h, None, None, self.c, None, None, self.weights, self.weight_space.data.ptr, work,
            work_space.data.ptr, reserve, reserve_space.data.ptr,
        )  # fmt: skip

    def backward(self, x: int, y: int, dy: int, dx: int) -> None:
        """Write dx and add to the weights' gradients, after a training forward pass."""
        (work, work_space), (reserve, reserve_space) = self.space[TRAINING]
        spaces = (work, work_space.data.ptr, reserve, reserve_space.data.ptr)
        self.library.RNNBackwardData_v8(
            self.handle, self.rnn, self.lengths.data.ptr, self.y, y, dy, self.x, dx, self.h, None, None, None, self.c,
            None, None, None, self.weights, self.weight_space.data.ptr, *spaces,
        )  # fmt: skip
        self.library.RNNBackwardWeights_v8(
            self.handle, self.rnn, GRADIENTS_ADD, self.lengths.data.ptr, self.x, x, self.h, None, self.y, y,
            self.weights, self.weight_gradient.data.ptr, *spaces,
        )  # fmt: skip
