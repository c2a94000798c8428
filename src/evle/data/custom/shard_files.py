"""Which tars folders, patterns and URLs name."""

import os
import re
from collections.abc import Sequence
from glob import glob
from pathlib import PurePosixPath

import fsspec

from evle.data.formats.tars import is_remote
from evle.errors import DataError

_COMPRESSED = (
    *(f".tar.{ending}" for ending in ("gz", "bz2", "xz", "zst", "lz4", "lzma", "z", "br")),
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tlz", ".tzst", ".zip", ".7z", ".rar"),
)


def find_shards(paths: Sequence[str], unread: list[str] | None = None) -> list[str]:
    """The tars that folders, files, patterns and URLs name, each once. Raises DataError where one is missing.

    `unread` takes in a line for each compressed tar or archive in a folder, for each linked folder there, which is not
    followed, and for each link to a tar that is read already.
    """
    found: dict[str, str] = {}  # each tar by its path without links
    unread = [] if unread is None else unread
    for path in paths:
        if is_folder(path):
            files, lines = _below(path)
            unread += lines
            if not files:
                note = lines[0] if lines else "is it the folder that img2dataset wrote?"
                raise DataError(f"{path}: no .tar files there; {note}")
        elif not is_remote(path) and os.path.isfile(path):
            files = [path]  # whatever signs its name holds
        else:
            files = []
            for each in expand_braces(path):
                files += _all_of(each) if any(sign in each for sign in "*?[") else [each]
            if not files:
                raise DataError(f"{path}: no file fits this pattern")
            missing = [] if is_remote(path) else [each for each in files if not os.path.isfile(each)]
            if missing == [path] and not path.endswith(".tar"):
                raise DataError(f"{path}: no such folder; put the shards there, or set path to their folder")
            if missing:
                raise DataError(
                    f"{missing[0]}: no such shard ({len(missing)} of {len(files)} are missing); fetch it, or name "
                    "those that are there with a pattern such as FOLDER/*.tar"
                )
        for file in files:
            if not file.lower().endswith(".tar"):
                raise DataError(f"{file}: a shard must be an uncompressed .tar; unpack .gz, .bz2 or .zst first")
            same = found.setdefault(file if is_remote(file) else os.path.realpath(file), file)
            if same != file:
                unread.append(f"{file}: is the same file as {same}, which is read already; name it once")
    return list(found.values())


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for: numbers from .. to, with leading zeros, or a list.

    >>> expand_braces("{a,b}/{08..10}.tar")
    ['a/08.tar', 'a/09.tar', 'a/10.tar', 'b/08.tar', 'b/09.tar', 'b/10.tar']
    """
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers is not None:
        width = max(len(numbers[1]), len(numbers[2])) if numbers[1].startswith("0") else 0
        words = [f"{number:0{width}d}" for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        words = found[1].split(",")
    begin, end = pattern[: found.start()], pattern[found.end() :]
    return list(dict.fromkeys(name for word in words for name in expand_braces(begin + word + end)))


def is_folder(path: str) -> bool:
    """Whether a path or URL is a folder. Raises DataError for a URL that cannot be opened."""
    if not is_remote(path):
        return os.path.isdir(path)
    try:
        files, inside = fsspec.url_to_fs(path)
        return files.isdir(inside)
    except (ImportError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None


def _below(folder: str) -> tuple[list[str], list[str]]:
    """The tars below a folder, in order, and a line for each thing there that is not read."""
    lines: list[str] = []
    unopened: list[OSError] = []
    if is_remote(folder):
        files, inside = fsspec.url_to_fs(folder)
        there = list(map(files.unstrip_protocol, files.find(inside)))
    else:
        there = []
        for here, folders, names in os.walk(folder, onerror=unopened.append):
            folders[:] = [name for name in folders if not name.startswith(".")]
            there += [os.path.join(here, name) for name in names if not name.startswith(".")]
            links = filter(os.path.islink, (os.path.join(here, name) for name in folders))
            lines += [f"{link}: a link to a folder, which is not followed; name that folder itself" for link in links]
    lines += [f"{each.filename}: cannot be opened ({each.strerror}); change its permissions" for each in unopened]
    packed = [file for file in there if file.lower().endswith(_COMPRESSED)]
    lines += [f"{file}: compressed, and not read; unpack it" for file in packed]
    return sorted(file for file in there if file.lower().endswith(".tar")), sorted(lines)


def _all_of(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return sorted(glob(pattern, recursive=True))
    files, inside = fsspec.url_to_fs(pattern)
    return sorted(files.unstrip_protocol(each) for each in files.glob(inside))


def short_names(files: list[str]) -> list[str]:
    """What tells the tars apart: their paths below the folder they share, without .tar unless only its case differs."""
    paths = [f"/{file}" if is_remote(file) else os.path.abspath(file) for file in files]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    whole = [PurePosixPath(os.path.relpath(path, folder)) for path in paths]
    names = [str(path.with_suffix("")) for path in whole]
    return names if len(set(names)) == len(names) else list(map(str, whole))
