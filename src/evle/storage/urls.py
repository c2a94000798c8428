"""URLs and the local folders that stand for them: a pure function of the URL, in both directions.

    s3://bucket/run   ->  CACHE/outputs/s3/bucket/run   where a run is written, and uploaded from
                          CACHE/inputs/s3/bucket/run    where a model or data are downloaded to
    file:///data/run  ->  /data/run

CACHE is the environment variable EVLE_CACHE, by default ~/.cache/evle.
"""

import os
import re
from pathlib import Path, PurePath
from typing import Literal
from urllib.parse import quote, unquote

from evle.errors import ConfigError

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
"""A scheme has at least two characters: C://data is a folder of Windows."""
MANGLED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")
"""What pathlib makes of a URL."""
SAFE = " @:=,+()!~#&"
Side = Literal["inputs", "outputs"]


def is_url(path: object) -> bool:
    """Whether a path is a URL.

    >>> is_url("s3://bucket/run"), is_url("runs/base"), is_url("C://data")
    (True, False, False)
    """
    return isinstance(path, str) and URL.fullmatch(path) is not None


def cache_folder() -> Path:
    """The folder of all local copies: EVLE_CACHE, else evle in the user's cache folder."""
    if named := os.environ.get("EVLE_CACHE"):
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "evle"


def local(path: str | os.PathLike[str], side: Side = "outputs") -> Path:
    """The local path that stands for `path`: of a URL its folder in the cache, of a path itself. Nothing is read.

    Raises ConfigError for a URL that names no folder, and for one that was turned into a path.
    """
    text = os.fspath(path)
    match = URL.fullmatch(text)
    if match is None:
        if text.find("://") > 1 and not Path(text).exists():
            raise ConfigError(f"{text}: not a URL of one file system; write it as SCHEME://PATH, without a chain")
        if MANGLED.match(text) and not Path(text).exists():
            scheme, _, rest = text.partition(":/")
            raise ConfigError(f"{text}: looks like a URL that became a path; pass it as text, {scheme}://{rest}")
        return Path(path)
    scheme, rest = match[1].lower(), match[2].rstrip("/")
    if scheme == "file":
        return Path("/" + rest.lstrip("/")) if rest.startswith("/") else Path(rest)
    parts = [part for part in rest.split("/") if part]
    if not parts or any(part in (".", "..") for part in parts):
        raise ConfigError(f"{text}: names no folder; write it as {scheme}://BUCKET/FOLDER")
    return cache_folder().joinpath(side, scheme, *(quote(part, safe=SAFE) for part in parts))


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The URL that a path stands for: a URL itself, that of a folder of the cache; None for any other path.

    >>> url_of(local("s3://bucket/a run", "inputs") / "model"), url_of("runs/base")
    ('s3://bucket/a run/model', None)
    """
    text = os.fspath(path)
    if is_url(text):
        return None if text.lower().startswith("file://") else text.rstrip("/")
    try:
        side, scheme, *parts = Path(text).absolute().relative_to(cache_folder()).parts
    except ValueError:
        return None
    if side not in ("inputs", "outputs") or not parts:
        return None
    return f"{scheme}://" + "/".join(map(unquote, parts))


def shown(path: str | os.PathLike[str]) -> str:
    """A path for a message: the URL that it stands for, or itself."""
    return url_of(path) or os.fspath(path)


def with_urls(text: str) -> str:
    """A text with URLs in the place of the folders of the cache that stand for them."""
    root = str(cache_folder())
    if root not in text:
        return text
    return re.sub(re.escape(root) + r"/(?:inputs|outputs)/[^\s'\"]+", lambda match: shown(match[0]), text)


def join(base: str | os.PathLike[str], *parts: str) -> str:
    """A path below `base`, which may be a URL.

    >>> join("s3://bucket/run", "vqa"), join("runs", "vqa")
    ('s3://bucket/run/vqa', 'runs/vqa')
    """
    text = os.fspath(base)
    if is_url(text):
        return "/".join([text.rstrip("/"), *parts])
    return str(PurePath(text, *parts))
