"""What a verb prints of a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evle.report import Report, Table


def show_report(report: "Report", folder: Path, tables: Sequence["Table"] = ()) -> None:
    """Print the report's summary, some of its tables, and where its page is. Only the main process prints."""
    from evle.distributed import is_main
    from evle.report import text_table

    if is_main():
        print("\n".join([report.title, *(f"  {line}" for line in report.summary)]))
        for table in tables:
            print(f"\n{text_table(table)}\n")
        print(f"report: {folder / 'report.html'}")
