"""The table of what was measured, as Markdown and as JSON."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

HEADER = ("row", "precision", "ours", "against", "ratio (spread)", "of the peak", "memory: ours, other")


def clock(record: Mapping[str, Any]) -> str:
    """Which time counts: that of the processor where one thread computes, which other processes cannot lengthen by
    taking its core; else that of the wall."""
    return "processor_seconds" if record["conditions"]["threads"] == 1 else "seconds"


def lines_of(name: str, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One line per comparison of a row; a base that nothing is compared with has a line of its own."""
    rounds = record["rounds"]
    if not rounds:
        return
    bases, spent = record["bases"], clock(record)
    compared = {base for way, base in bases.items() if way != base}
    for way, base in bases.items():
        if way == base and base in compared:
            continue
        ratios = [each[way][spent] / max(1e-9, each[base][spent]) for each in rounds]
        units = record["units"].get(base)
        seconds = median(each[base][spent] for each in rounds)
        yield {
            "row": name,
            "precision": record["conditions"]["dtype"],
            "base": base,
            "seconds": seconds,
            "rate": None if units is None else units / seconds,
            "unit": record["unit"],
            "against": None if way == base else way,
            "ratio": median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "share_of_peak": share_of_peak(record, base),
            "flops": record["ways"][base]["flops"],
            "memory": record["ways"][base]["memory"],
            "memory_other": record["ways"][way]["memory"],
            "rounds": len(rounds),
        }


def share_of_peak(record: Mapping[str, Any], way: str) -> float | None:
    """The median share that a way reached of the product measured right before it; None without one.

    Of ours alone: torch's fast path of `nn.MultiheadAttention`, which a textbook runs, is not counted by torch.
    """
    measured = [each[way] for each in record["rounds"]]
    if measured[0]["peak"] is None:
        return None
    flops = record["ways"][way]["flops"]
    return median(flops / each[clock(record)] / each["peak"] for each in measured)


def markdown(records: Mapping[str, Mapping[str, Any]], notes: Mapping[str, str] | None = None) -> str:
    """The table of all rows, the facts of each row that has some, and notes by row. `records` are by file name."""
    rows = [HEADER, tuple("---" for _ in HEADER)]
    facts = []
    for name, record in records.items():
        row = name.rsplit(".", 1)[0]
        rows += [_cells(line) for line in lines_of(row, record)]
        if record["facts"]:
            shown = ", ".join(f"{key} {_number(value)}" for key, value in record["facts"].items())
            facts.append(f"- {row}, {record['conditions']['dtype']}: {shown}")
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    shown = [f"- **{row}**: {' '.join(note.split())}" for row, note in (notes or {}).items()]
    return "\n\n".join([table, *(["\n".join(facts)] if facts else []), *(["\n".join(shown)] if shown else [])]) + "\n"


def _cells(line: Mapping[str, Any]) -> tuple[str, ...]:
    what = "" if line["base"] == "ours" else f": {line['base'].removeprefix('ours, ')}"
    rate = "" if line["rate"] is None else f" ({_number(line['rate'])} {line['unit']}/s)"
    low, high = line["ratio_range"]
    other = line["against"]
    share = line["share_of_peak"]
    memory = [line["memory"], *([line["memory_other"]] if other else [])]
    return (
        line["row"] + what,
        line["precision"],
        f"{_number(line['seconds'])} s{rate}",
        other or "",
        f"**{line['ratio']:.2f}** ({low:.2f} to {high:.2f})" if other else "",
        "" if share is None else f"{share:.0%}",
        "" if None in memory else ", ".join(f"{each / 1e9:.1f}" for each in memory) + " GB",
    )


def _number(value: Any) -> str:
    """Three significant digits; texts and whole numbers as they are."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
