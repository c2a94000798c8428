"""Images by the names that a table gives them: one name per image, however it is spelled, and one file per name."""

import os
import posixpath
import re
import stat
import unicodedata
from contextlib import suppress
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import unquote

from evle.data.formats.listing import IMAGE_SUFFIXES
from evle.errors import DataError, SampleError

URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://?[^/\\]|^[A-Za-z][A-Za-z0-9+.-]*://")


class ImageFolder:
    """The folder in which a table's images are. Picklable, and keeps no list of its files.

    With `allow_outside`, names and links may lead out of the folder.
    """

    def __init__(self, root: str | os.PathLike[str], allow_outside: bool = False):
        self.root, self.allow_outside = os.fspath(root), allow_outside

    def name_of(self, written: str, where: str) -> str:
        """The one name of an image: relative to the folder, in Unicode NFC, without `.`, `..` and backslashes.

        Raises DataError, at the row `where`, for a name outside of the folder.
        """
        text = unicodedata.normalize("NFC", written.strip())
        if is_url(text):
            return text
        if text != written.strip() and self._are_two_files(written.strip(), text):
            raise DataError(
                f"{where}: two files of {self.root} are called {written.strip()}, in different Unicode forms of its "
                "letters; rename one of them"
            )
        text = text.replace("\\", "/")
        name = posixpath.normpath(text)
        if posixpath.isabs(name):
            root = unicodedata.normalize("NFC", os.path.abspath(self.root))
            inside = posixpath.relpath(name.replace("//", "/", 1), root)
            name = name if inside.startswith("../") else inside
        if not self.allow_outside and (name == ".." or name.startswith("../") or posixpath.isabs(name)):
            raise DataError(f"{where}: {written} is outside of {self.root}; move it there or set allow_outside=true")
        return name

    def _are_two_files(self, one: str, other: str) -> bool:
        try:
            paths = os.path.join(self.root, one), os.path.join(self.root, other)
            return all(map(os.path.lexists, paths)) and not os.path.samefile(*paths)
        except (OSError, ValueError):
            return False

    def path_of(self, name: str) -> str:
        """The file of an image, found also where it is written in another form (see `file_of`).

        Raises SampleError for a URL, for a link that leads out of the folder, and for a name that two files could mean.
        A name without a file is returned as a path that does not exist.
        """
        if is_url(name):
            raise SampleError(f"{name}: is a URL; download the image and write its file name")
        path = os.path.join(self.root, name)
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        except (OSError, ValueError):
            found = self.file_of(name)
            if found is None:
                return path
            path, is_link = os.path.join(self.root, found), True
        if not self.allow_outside and (is_link or not _is_inside(os.path.dirname(path), self.root)):
            self._refuse_outside(path)
        return path

    def file_of(self, name: str) -> str | None:
        """The file that differs from `name` in form only, relative to the folder; None where there is none.

        It may differ in case, in the Unicode form of its letters, in blanks around it or signs without a shape, or have
        the ending of an image that the name lacks. Raises SampleError where several files do.
        """
        if is_url(name) or "\0" in name:
            return None
        if os.path.lexists(os.path.join(self.root, name)):
            return name
        here = "/" if posixpath.isabs(name) else ""
        parts = PurePosixPath(name).parts
        parts = parts[1:] if here else parts
        for index, part in enumerate(parts):
            folder = os.path.join(self.root, here)
            is_last = index == len(parts) - 1
            if os.path.lexists(os.path.join(folder, part)):
                found = [part]
            elif part == "..":
                return None
            else:
                files = _files_by_form(folder, _modified(folder))
                found = files.get(_form("/".join(parts[index:])), []) or files.get(_form(part), [])
                if not found and is_last:
                    found = _files_by_form(folder, _modified(folder), True).get(_form(part), [])
            if len(found) > 1:
                raise SampleError(
                    f"{os.path.join(self.root, name)}: no such file, and {' and '.join(sorted(found)[:4])} differ from "
                    "it in form only; write the name of one of them"
                )
            if not found:
                return None
            here = posixpath.join(here, found[0])
            if "\\" in found[0] and "\\" not in part:  # one file, called sub\b.jpg
                return here
        return here

    def similar_to(self, name: str) -> str | None:
        """The file that may be meant by the name of a missing image, because only its ending differs, because the name
        is percent-encoded (a%20b.jpg), or because a table lost the zeros in front of a number (12 for 000012.jpg); None
        where there is none, or several."""
        stem, suffix = posixpath.splitext(name)
        for other in (unquote(name), stem if suffix.lower() in IMAGE_SUFFIXES else name):
            with suppress(SampleError):
                if other != name and (found := self.file_of(other)):
                    return found
        if (number := posixpath.basename(stem if suffix.lower() in IMAGE_SUFFIXES else name)).isdecimal():
            inside = posixpath.dirname(name)
            folder = os.path.join(self.root, inside)
            numbered = _files_by_number(folder, _modified(folder)).get(number.lstrip("0"), [])
            if len(numbered) == 1:
                return posixpath.join(inside, numbered[0])
        return None

    def hint_for(self, name: str) -> str:
        """Where an image that is missing may be: under a similar name, in the folder itself, or in one a level
        below; "" for nowhere."""
        if not is_url(name) and (similar := self.similar_to(name)):
            return f"; {similar} exists: write that name"
        base = posixpath.basename(name)
        if not base or is_url(name):
            return ""
        if base != name and os.path.isfile(os.path.join(self.root, base)):
            return f"; {base} exists: write that name"
        for folder in _folders(self.root, _modified(self.root)):
            if os.path.isfile(os.path.join(self.root, folder, base)):
                there = os.path.join(self.root, folder)
                return f"; {folder}/{base} exists: write that name, or set images={there}"
        return ""

    def _refuse_outside(self, path: str) -> None:
        real, root = os.path.realpath(path), os.path.realpath(self.root)
        if os.path.commonpath([real, root]) != root:
            raise SampleError(
                f"{path}: is a link to a file outside of {self.root}; copy the file there or set allow_outside=true"
            )


def file_like(path: str | os.PathLike[str]) -> str | None:
    """The file that may be meant by a path without a file, because its name differs in form or ending only."""
    here, name = ImageFolder(os.sep, allow_outside=True), os.path.abspath(path)
    try:
        found = here.file_of(name) or here.similar_to(name)
    except SampleError:
        return None
    if found is None or found == name:
        return None
    return found if os.path.isabs(path) else os.path.relpath(found)


def loose_form(name: str) -> str:
    """What names have in common that may be the same file: case and the ending are left out.

    >>> loose_form("Sub/A.JPG") == loose_form("sub/a")
    True
    """
    stem, suffix = posixpath.splitext(name.casefold())
    return stem if suffix in IMAGE_SUFFIXES else stem + suffix


def is_url(name: str) -> bool:
    """Whether a name is a URL, such as https://host/a.jpg.

    >>> is_url("https://a.b/c.jpg"), is_url("C:/a.jpg"), is_url("a.jpg")
    (True, False, False)
    """
    return "://" in name[:40] and URL.match(name) is not None


def _form(name: str) -> str:
    text = unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()
    return "".join(sign for sign in text if unicodedata.category(sign) != "Cf").strip()  # Cf: signs without a shape


def _modified(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except (OSError, ValueError):
        return 0


@lru_cache(8)
def _files_by_form(folder: str, modified: int, without_ending: bool = False) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):
        return files
    for name in names:
        stem, suffix = os.path.splitext(name)
        if not without_ending:
            files.setdefault(_form(name), []).append(name)
        elif suffix.lower() in IMAGE_SUFFIXES:
            files.setdefault(_form(stem), []).append(name)
    return files


@lru_cache(8)
def _files_by_number(folder: str, modified: int) -> dict[str, list[str]]:
    """The images whose names are numbers, by these numbers without zeros in front."""
    files: dict[str, list[str]] = {}
    for forms in _files_by_form(folder, modified, True).values():
        for name in forms:
            if (stem := os.path.splitext(name)[0]).isdecimal():
                files.setdefault(stem.lstrip("0"), []).append(name)
    return files


@lru_cache(8)
def _folders(folder: str, modified: int) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


@lru_cache(4096)
def _is_inside(folder: str, root: str) -> bool:
    real, top = os.path.realpath(folder), os.path.realpath(root)
    return os.path.commonpath([real, top]) == top
