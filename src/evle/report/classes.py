"""How well each class was recognised, and what it was taken for."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from evle.report.parts import Table

SHOWN_CLASSES = 20


def class_table(title: str, truths: Sequence[str], predicted: Sequence[str]) -> Table:
    """One row per true class, the most frequent first: its samples, the share that was right, and the most frequent
    mistakes with their number. Ties are broken by order.

    >>> class_table("Answers", ["red", "red", "blue"], ["red", "blue", "blue"]).rows
    [['red', 2, 50.0, 'blue 1'], ['blue', 1, 100.0, '']]
    """
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for truth, prediction in zip(truths, predicted, strict=True):
        given[truth][prediction] += 1
    classes = sorted(given, key=lambda name: -given[name].total())
    rows = []
    for name in classes[:SHOWN_CLASSES]:
        count = given[name].total()
        mistakes = [f"{other} {number}" for other, number in given[name].most_common() if other != name]
        rows.append([name, count, 100 * given[name][name] / count, ", ".join(mistakes[:3])])
    rest = f"The {SHOWN_CLASSES} most frequent of {len(classes):,} classes." if len(classes) > SHOWN_CLASSES else ""
    return Table(title, ["class", "samples", "right (%)", "mistaken for"], rows, rest)
