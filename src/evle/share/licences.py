"""The licences of the data that a model was trained on."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evle.data.formats.table_files import find_table, read_rows
from evle.errors import EvleError

COLUMNS = ("licence", "license")
FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md")
UNKNOWN = "not stated"
GENERATED = "drawn by evle, without data of others"
OWNERS = "each image has the licence of its owner"
CORPORA: Mapping[str, str] = {
    "scenes": GENERATED,
    "boxes": GENERATED,
    "swaps": GENERATED,
    "karpathy": f"captions of COCO CC BY 4.0, of Flickr30K for research; {OWNERS} (Flickr's terms)",
    "coco-captions": f"captions CC BY 4.0; {OWNERS} (Flickr's terms)",
    "xvlm": "that of the corpora in the list",
    "visual-genome": "CC BY 4.0",
    "sbu": OWNERS,
    "cc": f"captions free for any use; {OWNERS}",
    "easy-vqa": "MIT",
    "vqav2": f"questions and answers CC BY 4.0; {OWNERS} (Flickr's terms)",
    "nlvr": "CC BY 4.0",
    "nlvr2": f"sentences CC BY 4.0; {OWNERS}",
    "vcr": "the terms of VCR, for research",
}
"""The licences that the publishers of known corpora state, by source."""


def licences_of(source: str, path: str | None) -> dict[str, int]:
    """The licences of one source of samples, with the number of rows that have each; 0 where rows are not counted.

    A table's own column `licence` (or `license`) counts first, then the corpus, then a licence file in the folder.
    """
    folder = Path(path) if path else None
    if folder is not None and source == "folder" and (counted := _by_row(folder)):
        return counted
    if source in CORPORA:
        return {CORPORA[source]: 0}
    if folder is not None and folder.is_dir():
        if (stated := _of_dataset(folder / "dataset_info.json")) is not None:
            return {stated: 0}
        for name in FILES:
            if (folder / name).is_file():
                return {f"see {name} of the data": 0}
    return {UNKNOWN: 0}


def _by_row(folder: Path) -> dict[str, int]:
    """The number of rows of each licence, most first; empty for a table without that column, or without a table."""
    counts: Counter[str] = Counter()
    try:
        for _, row in read_rows(find_table(folder), lambda name: name in COLUMNS):
            if not isinstance(row, EvleError):
                stated = next((row[name] for name in COLUMNS if row.get(name)), None)
                counts[str(stated) if stated else UNKNOWN] += 1
    except EvleError:  # a folder of images without a table, or data that has moved since
        return {}
    return {} if set(counts) <= {UNKNOWN} else dict(counts.most_common())


def _of_dataset(file: Path) -> str | None:
    """The licence in the description of a data set that was saved by Hugging Face `datasets`."""
    try:
        facts: Any = json.loads(file.read_text(encoding="utf-8"))
        return str(facts["license"]) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None
