"""The files of a user's folder: the images that are read, and, by name, what looks like data and is not read."""

import codecs
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from evle.data.formats.text_files import open_plain_file
from evle.errors import DataError

IMAGE_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""The image files that are read, in folders and in shards."""
UNREAD_IMAGES = (
    ".heic", ".heif", ".hif", ".jxl", ".psd", ".svg", ".eps", ".pdf", ".exr", ".hdr", ".ico", ".xcf", ".ai", ".dng",
    ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".raf", ".rw2", ".pef", ".raw", ".srw",
    ".3fr", ".iiq", ".x3f", ".dcm", ".fits", ".djvu", ".npy", ".mp4", ".mov",
)  # fmt: skip
"""Files of images that are not read."""
UNREAD_SUFFIXES = {
    "images of a kind that is not read; convert them to JPEG or PNG": UNREAD_IMAGES,
    "archives, which are not opened; unpack them": (
        ".zip", ".rar", ".7z", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".tbz2", ".txz",
    ),
    "files that may hold rows, which are not read; save their rows as CSV or JSON lines": (
        ".xml", ".yaml", ".yml", ".db", ".sqlite", ".sqlite3", ".mdb", ".pkl", ".pickle", ".h5", ".hdf5", ".mat",
        ".npz", ".msgpack", ".rds", ".sav", ".dta", ".html", ".htm", ".docx", ".rtf",
    ),
}  # fmt: skip
OTHER_TABLES = (".json", ".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".arrow", ".feather", ".orc", ".avro")
"""Tables of kinds that are not read; they are named where no table is found."""
RENAMED = {".ndjson": ".jsonl", ".jsonlines": ".jsonl", ".pq": ".parquet", ".parq": ".parquet"}
"""Other endings of tables that are read."""

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
_PACKED = (".csv", ".tsv", ".jsonl", ".json", ".parquet")  # tables that people compress
_TEXT_TABLES = (".txt", ".token", ".lst", ".list", ".dat", ".tab")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_SNIFFED = 1000  # files without an ending that are opened to see whether they are images


@dataclass
class Listing:
    """The images below a folder, as sorted paths relative to it, and what is not read: one line per kind."""

    images: list[str]
    unread: list[str] = field(default_factory=list)


def list_folder(path: str | os.PathLike[str]) -> Listing:
    """The images below a folder, by their endings, and what is not read there. Hidden files do not count.

    Linked folders are not followed: a link may lead anywhere, also back. Raises DataError where there is no folder.
    """
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such folder; check the path")
    images: list[str] = []
    unread: dict[str, list[str]] = defaultdict(list)
    texts: list[str] = []
    failures: list[str] = []
    sniffed = 0
    for here, folders, files in os.walk(os.fspath(path), onerror=lambda error: failures.append(str(error.filename))):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if here != os.fspath(path) and "index.json" in files and "shards" in folders:
            folders.clear()  # an index of `evle index`
            continue
        inside = PurePosixPath(Path(here).relative_to(path))
        links = [str(inside / name) for name in folders if os.path.islink(os.path.join(here, name))]
        unread["links to other folders, which are not followed; name those folders themselves"] += links
        for name in files:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if not os.path.exists(os.path.join(here, name)):
                unread["links that lead nowhere; correct or remove them"].append(str(inside / name))
            elif suffix in IMAGE_SUFFIXES:
                images.append(str(inside / name))
            elif suffix in (".txt", ".caption"):
                texts.append(str(inside / name))
            elif not suffix and sniffed < _SNIFFED:
                sniffed += 1
                if _starts_like_an_image(os.path.join(here, name)):
                    unread["images without an ending such as .jpg; rename them"].append(str(inside / name))
            else:
                kind = next((words for words, endings in UNREAD_SUFFIXES.items() if suffix in endings), None)
                if kind is not None:
                    unread[kind].append(str(inside / name))
    named = {os.path.splitext(name)[0] for name in images} if texts else set()
    unread["texts beside their images, which are not read; write them into a table"] += [
        name for name in texts if os.path.splitext(name)[0] in named
    ]
    unread["folders that cannot be opened; change their permissions"] += failures
    lines = [f"{len(names):,} {_noun(kind, len(names))}: {_named(names)}" for kind, names in unread.items() if names]
    return Listing(sorted(images), lines + other_tables(Path(path)))


def other_tables(path: Path) -> list[str]:
    """One line for each file of a folder that holds rows for a person, and that is not read as a table."""
    lines = []
    for file in sorted(path.iterdir()):
        suffix = file.suffix.lower()
        if suffix in OTHER_TABLES and not file.name.startswith("."):
            lines.append(f"{file.name}: of no kind that is read; save it as CSV or JSON lines")
        elif suffix in RENAMED and not file.name.startswith("."):
            lines.append(f"{file.name}: a table of another ending; rename it to {file.stem}{RENAMED[suffix]}")
        elif suffix in _COMPRESSED and Path(file.stem).suffix.lower() in _PACKED and not file.name.startswith("."):
            lines.append(f"{file.name}: a compressed table; unpack it")
        elif suffix in _TEXT_TABLES and file.is_file() and (sign := _sign_of_table(file)):
            ending = ".csv" if sign in ",;|" else ".tsv"
            cure = f"rename it to {file.stem}{ending}" if sign != " " else f"save it as {file.stem}.tsv, with tabs"
            lines.append(f"{file.name}: looks like a table; {cure}")
    return lines


def _noun(kind: str, count: int) -> str:
    if count > 1:
        return kind
    for plural, singular in (
        ("files that may hold rows, which are", "file that may hold rows, which is"),
        ("texts beside their images, which are", "text beside its image, which is"),
        ("images", "image"),
        ("archives", "archive"),
    ):
        if plural in kind:
            return kind.replace(plural, singular, 1)
    return kind


def _named(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (", ..." if len(listed) > 5 else "")


def _starts_like_an_image(path: str) -> bool:
    try:
        with open_plain_file(path) as file:
            start = file.read(16)
    except DataError:
        return False
    return start.startswith(_MAGIC) or start[8:12] == b"WEBP"


def _sign_of_table(file: Path) -> str:
    """The sign between the columns where a text file names an image and says something of it; "" for another text."""
    try:
        with open_plain_file(file) as opened:
            start = opened.read(4096)
    except DataError:
        return ""
    lines = list(filter(str.strip, _decoded(start).splitlines()))[:3]
    for line in lines:
        for sign in "\t,;|":
            first, *others = line.split(sign)
            if others and (_is_image_name(first) or any(map(_is_image_name, filter(_is_word, others)))):
                return sign
    ends = [(words[0], words[-1]) for words in map(str.split, lines) if len(words) > 1]
    if len(ends) == len(lines) > 1 and any(all(map(_is_image_name, column)) for column in zip(*ends)):
        return " "
    return ""


def _decoded(start: bytes) -> str:
    """The beginning of a text file, in UTF-8 or UTF-16."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return start.decode("utf-16", "replace")
    odd, even = start[1::2].count(0), start[::2].count(0)
    encoding = "utf-8" if max(odd, even) < len(start) // 4 + 1 else "utf-16-le" if odd > even else "utf-16-be"
    return start.decode(encoding, "replace")


def _is_image_name(cell: str) -> bool:
    return os.path.splitext(cell.split("#")[0].strip().strip('"'))[1].lower() in IMAGE_SUFFIXES


def _is_word(cell: str) -> bool:
    return len(cell.split()) == 1
