"""The command `fastrnn info`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from fastrnn.commands.console import one_line_errors


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print versions, processor, SIMD features, threads, and the GPU or why there is none."""
    from fastrnn.info import facts

    with one_line_errors():
        found = facts()
    typer.echo(json.dumps(found, indent=2) if as_json else _table(found))


def _table(found: dict[str, Any]) -> str:
    gpu = ", ".join(found["gpu"]) or "none"
    if found["gpu_unused_because"]:
        gpu += f" ({'not used' if found['gpu'] else 'why'}: {found['gpu_unused_because']})"
    rows = {
        "processor": f"{found['processor']}, {found['system']}",
        "SIMD features": ", ".join(found["features"]) or "none known",
        "vector width": f"{found['vector_bits']} bits",
        "threads": f"{found['threads']} of {found['cores']} cores",
        "backend": found["backend"],
        "GPU": gpu,
        "BLAS": found["blas"],
        **found["versions"],
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
