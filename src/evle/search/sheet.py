"""The results of a search as one HTML page: images with links, captions, scores and ranks."""

import base64
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from evle.data.images import describe_source, open_image
from evle.data.samples import ImageSource
from evle.errors import SampleError
from evle.files import write_whole
from evle.search.index import ImageIndex
from evle.search.results import Hit
from evle.search.store import writing
from evle.terminal import printable

SIDE = 320
"""Longest side of an image on the page, in pixels."""

_PAGES = Environment(
    loader=PackageLoader("evle.search", "pages"), autoescape=True, trim_blocks=True, undefined=StrictUndefined
)


def write_contact_sheet(
    hits: Sequence[Hit],
    query: str,
    path: str | Path,
    *,
    query_image: ImageSource | None = None,
    index: ImageIndex | None = None,
) -> Path:
    """The hits as one page at `path` that needs no other file; `query` is the text, or the name of `query_image`.

    With `index` the page names the index, its model and the number of images. An image that cannot be read any more is
    named instead of shown. Links lead to the images on this machine.
    """
    path = Path(path)
    facts = {"Results": str(len(hits))}
    if index is not None:
        facts |= {
            "Index": f"{index.path} ({len(index):,} images)",
            "Model": index.store.facts.model_name or "in memory",
        }
    facts["Date"] = time.strftime("%Y-%m-%d %H:%M")
    page = _PAGES.get_template("sheet.html").render(
        query=_clean(query),
        query_image=None if query_image is None else _shown(query_image),
        query_name="" if query_image is None else _clean(describe_source(query_image)),
        facts=facts,
        cards=[_card(rank, hit, path) for rank, hit in enumerate(hits, 1)],
    )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, page)
    return path


def _card(rank: int, hit: Hit, page: Path) -> dict[str, Any]:
    image, problem = _shown(hit.path)
    more = {name: value for name, value in hit.fields.items() if name != hit.caption_column}
    return {
        "rank": rank,
        "image": image,
        "problem": problem,
        "link": _link(hit.path, page),
        "name": _clean(hit.key),
        "caption": _clean(hit.caption),
        "score": f"{hit.score:.3f}",
        "match": None if hit.match is None else f"{hit.match:.1%}",
        "date": time.strftime("%Y-%m-%d", time.localtime(hit.changed)) if hit.changed else "",
        "more": [(_clean(name), _clean(_in_words(value))) for name, value in more.items()],
    }


def _in_words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _link(target: Path, page: Path) -> str:
    """A relative link from the page to an image, so that both may move together."""
    return quote(os.fsencode(os.path.relpath(target.absolute(), page.absolute().parent)).replace(os.sep.encode(), b"/"))


def _shown(source: ImageSource) -> tuple[str, str]:
    """The image as a data URL, or "" and the reason why there is none."""
    try:
        image = open_image(source, size_hint=SIDE)
    except SampleError as error:
        return "", _clean(f"cannot be shown ({error})")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.convert("RGB").save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode(), ""


def _clean(text: str) -> str:
    return printable(text.encode("utf-8", "replace").decode())
