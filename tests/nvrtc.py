"""CUDA sources compiled for a chip by NVRTC, which needs no GPU, and what the compiler says of each kernel."""

import re
import struct
from typing import NamedTuple

REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '\w+'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


SINGLE = re.compile(r"(?:ld|st)\.global\.(?!v\d|[us]8|[us]64)\w+")  # .u8 and .u64: flags and lengths


class Usage(NamedTuple):
    """What a kernel needs of a chip."""

    registers: int  # a thread
    shared: int  # bytes a block, besides what the launch asks for
    spills: int  # bytes a thread stores to and loads from memory because registers ran out
    stack: int  # bytes a thread
    code: int  # bytes
    singles: int  # instructions that load or store one element of an array; lengths and flags are not counted


def unavailable() -> str:
    """Why NVRTC cannot be called here; empty if it can."""
    try:
        from cupy_backends.cuda.libs import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # no CuPy, or one that finds no NVRTC: any of several classes, some of them CuPy's own
        return f"the compile gate needs CuPy and NVRTC: pip install fastrnn[cudacheck] ({error})"
    return ""


def knows(chip: str) -> bool:
    """Whether this NVRTC compiles for a chip such as sm_90a."""
    from cupy_backends.cuda.libs import nvrtc

    return int(re.sub(r"\D", "", chip)) in nvrtc.getSupportedArchs()


def compile_for(chip: str, code: str, options: tuple[str, ...]) -> dict[str, Usage]:
    """Compile a source to machine code, as CuPy would; return what each kernel needs, by name."""
    log, cubin, ptx = _compile(chip, code, options)
    sizes = _code_sizes(cubin)
    singles = {part.split("(")[0]: len(SINGLE.findall(part)) for part in ptx.split(".entry ")[1:]}
    return {
        found["name"]: Usage(
            int(found["registers"]), int(found["shared"] or 0), int(found["stores"]) + int(found["loads"]),
            int(found["stack"]), sizes[found["name"]], singles[found["name"]],
        )
        for found in REPORT.finditer(log)
    }  # fmt: skip


def ptx_of(kernel: str, chip: str, code: str, options: tuple[str, ...]) -> str:
    """The instructions of one kernel, before they are made those of the chip."""
    text = _compile(chip, code, options)[2]
    return text.split(f".entry {kernel}(")[1].partition(".entry ")[0]


def _compile(chip: str, code: str, options: tuple[str, ...]) -> tuple[str, bytes, str]:
    """The compiler's log, the machine code and the PTX; raises NVRTC's error, with its log."""
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(code, "fastrnn.cu", (), ())
    try:
        flags = (*options, f"-arch={chip}", "-ftz=true", "--ptxas-options=-v")  # CuPy always flushes denormals
        try:
            nvrtc.compileProgram(program, flags)
        except nvrtc.NVRTCError as error:
            raise RuntimeError(f"{chip}: {error}\n{nvrtc.getProgramLog(program)}") from error
        ptx = nvrtc.getPTX(program)
        return nvrtc.getProgramLog(program), nvrtc.getCUBIN(program), ptx if isinstance(ptx, str) else ptx.decode()
    finally:
        nvrtc.destroyProgram(program)


def _code_sizes(cubin: bytes) -> dict[str, int]:
    """Bytes of machine code by kernel: the sections .text.NAME of an ELF file."""
    table, _, _, _, _, entry, count, names = struct.unpack_from("<QIHHHHHH", cubin, 0x28)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + k * entry) for k in range(count)]
    strings = sections[names][4]

    def name(at: int) -> str:
        return cubin[strings + at : cubin.index(b"\0", strings + at)].decode()

    sizes = {name(section[0]): section[5] for section in sections}
    return {key.removeprefix(".text."): size for key, size in sizes.items() if key.startswith(".text.")}
