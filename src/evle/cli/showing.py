"""What a verb prints of a report, and which command is useful after a training."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evle.cli.shared import print_next, print_opening
from evle.terminal import one_line

if TYPE_CHECKING:
    from evle.report import Report, Table


AFTER_TRAINING = {
    "pretraining": ("explain", "RUN", "IMAGE", "a text", "-o", "page.html"),
    "retrieval": ("index", "FOLDER", "-o", "INDEX", "--model", "RUN"),
    "vqa": ("ask", "RUN", "IMAGE", "a question"),
    "match": ("match", "RUN", "IMAGE", "a text"),
    "locate": ("locate", "RUN", "IMAGE", "a phrase", "-o", "found.png"),
    "nlvr2": ("compare", "RUN", "LEFT", "RIGHT", "a sentence about both images"),
    "vcr-q2a": ("vcr", "RUN", "RUN-OF-VCR-QA2R"),
    "vcr-qa2r": ("vcr", "RUN-OF-VCR-Q2A", "RUN"),
}
"""By task, the verb that uses its model; capital words are to be filled in, RUN is filled in here. "match" and "locate"
are for exported models, which may lack the graph of images."""


def exported_use(task: str, graphs: Collection[str]) -> str:
    """The key of AFTER_TRAINING for an exported model of a task, with these graphs.

    >>> exported_use("retrieval", ["image", "text"]), exported_use("retrieval", ["match", "words"])
    ('retrieval', 'match')
    """
    if task != "retrieval" or "image" in graphs:
        return task
    return next((name for name in ("match", "locate") if name in graphs), "")


def show_use(task: str, run: Path | str) -> None:
    """Print the command that uses the model in the folder `run`, or with that name. Only the main process prints."""
    from evle.distributed import is_main

    if is_main():
        command = AFTER_TRAINING.get(task, ("evaluate", "RUN"))
        print_next("evle", *(run if word == "RUN" else word for word in command))


def show_page(page: Path) -> None:
    """Print the command that shows a page. Only the main process prints."""
    from evle.distributed import is_main

    if is_main():
        print_opening(page)


def show_report(report: "Report", folder: Path, tables: Sequence["Table"] = ()) -> None:
    """Print the report's summary, some of its tables, and where its page is. Only the main process prints."""
    from evle.distributed import is_main
    from evle.report import text_table
    from evle.storage import shown

    if is_main():
        print("\n".join([report.title, *(f"  {one_line(line)}" for line in report.summary)]))
        for table in tables:
            print(f"\n{text_table(table)}\n")
        print(f"report: {shown(folder / 'report.html')}")
