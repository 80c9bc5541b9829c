"""Tables of a recorded run: every figure of one number of threads, and the short form that goes into the README."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from fastrnn.bench.cases import Case
from fastrnn.bench.results import Entry, Record, Row

BUSY = 0.05  # share of the processors' time used by others from which on a run says so loudly
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
Table: TypeAlias = tuple[list[str], list[list[str]]]  # headings, lines

NOTES = (
    "Times are medians over interleaved samples (± the distance between their quartiles, where given); *vs best*, or "
    "*1.40x torch*, is the time of the fastest peer over fastrnn's in the same run: above 1, fastrnn is faster. Every "
    "result is checked against float64 before it is timed. Training renews the parameters, then runs forward and "
    "backward with all gradients (x, parameters, initial states). The floor is the roofline of this machine, from "
    "peaks measured in the same run."
)
THREADS = (
    "A number of threads is an upper bound, the same for all contestants. On a machine shared with others, work split "
    "over threads waits for the thread that is disturbed most, so compare ratios within one run, never times of two."
)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with three significant digits, or all before the point."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def size(case: Case) -> str:
    """T, B and I = H of a case, as the tables have them; T, B, I, H where they differ."""
    inputs = "" if case.input_size == case.hidden_size else f"{case.input_size}, "
    return f"{case.steps}, {case.batch}, {inputs}{case.hidden_size}"


def label(case: Case) -> str:
    """What a case is, without its size: `lstm train, lengths`."""
    return f"{case.cell} {case.mode}" + {"sequence": "", "step": ", one step", "lengths": ", lengths"}[case.kind]


def columns(record: Record, padded: bool = False) -> list[str]:
    """Contestants in the order of the run; those that ignore lengths, or the others."""
    return list(dict.fromkeys(e.contestant for row in record.rows for e in row.entries if e.padded == padded))


def full(record: Record, threads: int) -> Table:
    """Return every row at one number of threads."""
    names = columns(record)
    headings = ["case", "T, B, I=H", *(f"{n} ms" for n in names), "vs best", "GFLOP/s", "GB/s", "floor ms", "of floor"]
    return headings, [_line(row, names) for row in record.rows if row.threads == threads]


def _line(row: Row, names: Iterable[str]) -> list[str]:
    ours = row.entry("fastrnn")
    seconds = None if ours is None else ours.median
    figures = ["", "", milliseconds(row.floor), ""]
    if seconds is not None:
        rates = f"{row.flops / seconds / 1e9:.1f}", f"{row.traffic / seconds / 1e9:.1f}"
        figures = [*rates, milliseconds(row.floor), f"{100 * row.floor / seconds:.0f}%"]
    return [label(row.case), size(row.case), *(cell(row.entry(n)) for n in names), ratio(row.ratio), *figures]


def cell(entry: Entry | None) -> str:
    """Time and spread of one contestant; without a right result never a number."""
    if entry is None or entry.status == "refuses":
        return "-"
    if entry.median is None or entry.low is None or entry.high is None:
        return entry.status.upper() if entry.status in ("wrong", "failed") else entry.status
    return f"{milliseconds(entry.median)} ±{100 * (entry.high - entry.low) / entry.median:.0f}%"


def ratio(value: float | None) -> str:
    """A ratio, or "-" where there is none."""
    return "-" if value is None else f"{value:.2f}"


def padding(record: Record, threads: int) -> Table:
    """Return the rows of variable length beside the same batch run padded, which is another job."""
    names = [*columns(record), *columns(record, padded=True)]
    names = [n for n in sorted(names) if n != "reference"]
    headings = ["case", *(f"{n} ms" for n in names), "lengths / padded", "vs best padded"]
    lines = []
    for row in record.rows:
        if row.threads == threads and row.case.kind == "lengths":
            ours, padded, peer = row.entry("fastrnn"), row.entry("fastrnn padded"), row.best_peer(padded=True)
            figures = [ratio(_quotient(ours, padded)), ratio(_quotient(peer, ours))]
            lines.append([label(row.case), *(cell(row.entry(n)) for n in names), *figures])
    return headings, lines


def _quotient(a: Entry | None, b: Entry | None) -> float | None:
    return a.median / b.median if a and b and a.median and b.median else None


def short(record: Record, threads: int) -> Table:
    """Return fastrnn's times and ratios, a line a size, a column a cell and mode."""
    rows = [row for row in record.rows if row.threads == threads]
    heads = list(dict.fromkeys((row.case.cell, row.case.mode) for row in rows))
    sizes = sorted(
        {(_KINDS.index(r.case.kind), r.case.steps * r.case.batch * r.case.hidden_size, _sized(r)) for r in rows}
    )
    found = {(_sized(row), row.case.cell, row.case.mode): row for row in rows}
    lines = [[name, *(_short(found.get((name, *head))) for head in heads)] for _, _, name in sizes]
    return ["T, B, I=H", *(f"{c} {m}" for c, m in heads)], lines


_KINDS = ("sequence", "step", "lengths")


def _sized(row: Row) -> str:
    return size(row.case) + {"sequence": "", "step": " (one step)", "lengths": " (lengths)"}[row.case.kind]


def _short(row: Row | None) -> str:
    """`1.23 ms, 1.4x torch`; what is wrong instead where something is; nothing where there is no such case."""
    ours = None if row is None else row.entry("fastrnn")
    if row is None or ours is None:
        return ""
    peer = row.best_peer()
    if ours.median is None:
        return cell(ours)
    compared = "" if peer is None else f", {ratio(row.ratio)}x {peer.contestant}"
    return f"{milliseconds(ours.median)} ms{compared}"


def means(record: Record, threads: int) -> str:
    """Geometric means of the ratios to the best peer, and of the modules' times to the layers', a sentence each."""
    compared = _means(record, threads, "ratio") or "no peer to compare with"
    modules = _means(record, threads, "module_ratio")
    added = f" Time of fastrnn.torch over fastrnn's own: {modules}." if modules else ""
    return f"Geometric mean of vs best: {compared}.{added}"


def _means(record: Record, threads: int, of: str) -> str:
    parts = []
    for mode in ("infer", "train"):
        total = record.geometric_mean(threads, mode, of=of)
        if total is not None:
            kinds = [(kind, record.geometric_mean(threads, mode, kind, of)) for kind in _KINDS]
            split = ", ".join(f"{kind} {value:.2f}" for kind, value in kinds if value is not None)
            parts.append(f"{mode} {total:.2f} ({split})")
    return "; ".join(parts)


def absent(record: Record) -> list[str]:
    """Peers that could not take part, and why, one line each."""
    return sorted({f"{e.contestant}: absent, {e.note}" for r in record.rows for e in r.entries if e.status == "absent"})


def about(record: Record) -> str:
    """What the run was measured on and with, one sentence each."""
    m, features = record.machine, " ".join(record.machine["features"])
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    peaks = "; ".join(
        f"{p.threads} thread{'s' * (p.threads > 1)} {p.flops / 1e9:.0f} GFLOP/s, {p.memory / 1e9:.0f} GB/s"
        for p in record.peaks
    )
    commit = f", commit {record.commit}" if record.commit else ""
    blas = "" if "threadpoolctl" in record.versions else " NumPy's BLAS was not held to that number of threads."
    made = f"{record.settings['dtype']}, {record.date}, {record.seconds:.0f} s by `{record.settings['command']}`"
    quick = " A quick run: the small cases only." if record.settings.get("quick") else ""
    return (
        f"{m['processor']} ({m['cores']} cores, {features}), {m['system']}; {versions}{commit}; "
        f"{made}. Measured peaks: {peaks}.{blas}{quick}"
    )


def quiet(record: Record) -> str:
    """How busy the machine was with other things, and what follows."""
    share, load = record.machine["others"], record.machine["load_before"]
    if share is None:
        return f"Load average before the run: {load[0] if load else 'unknown'}."
    if share <= BUSY:
        return f"Other processes used {100 * share:.0f}% of the processors' time during the run."
    return (
        f"**The machine was busy: other processes used {100 * share:.0f}% of the processors' time during the run. "
        "Take nothing from these figures; repeat them on a quiet machine.**"
    )


def markdown_table(table: Table) -> str:
    """Return the table in Markdown, figures right-aligned."""
    headings, lines = table
    rule = ["---", *("--:" for _ in headings[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, rule, *lines))


def markdown(record: Record, main: Callable[[Record, int], Table] = full) -> str:
    """Return a recorded run as Markdown, with `full` or `short` tables."""
    blocks = []
    for threads in dict.fromkeys(row.threads for row in record.rows):
        blocks.append(f"**{threads} thread{'s' * (threads > 1)}.** {means(record, threads)}")
        blocks.append(markdown_table(main(record, threads)))
        if main is full and (table := padding(record, threads))[1]:
            blocks += ["Variable length beside the same batch padded, every sequence run to T:", markdown_table(table)]
    listed = [f"- {line}" for line in (*absent(record), *record.broken)]
    return (
        "\n\n".join([*blocks, *(["\n".join(listed)] if listed else []), NOTES, THREADS, quiet(record), about(record)])
        + "\n"
    )


def insert(document: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """Return the document with the section between two markers replaced.

    Raises:
        ValueError: the two markers are not there exactly once, in this order.
    """
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise ValueError(f"readme: expected one {begin} and after it one {end}, got something else")
    head, rest = document.split(begin)
    return f"{head}{begin}\n\n{section.strip()}\n\n{end}{rest.split(end)[1]}"
