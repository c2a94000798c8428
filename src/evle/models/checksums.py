"""A checksum in each file of weights that evle writes, by which damage of the file is found when it is loaded.

It is in the file's header, so that it is copied, renamed, uploaded and replaced with the file. A checksum beside the
file would belong to another file after the next `save_pretrained`. The header begins with `MARK`, whose blank no writer
of safetensors puts there: a tool that rewrites a file and keeps its metadata leaves a checksum of the old tensors, but
not the mark, and a file without the mark is not checked.
"""

import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from evle.distributed import is_main
from evle.errors import CheckpointError
from evle.files import opened_whole

KEY = "evle_crc32"
NOTE = "evle_tokenizer"
"""The key of a note in the header, and the attribute of a model that has one to write (`vocabulary.py`)."""
MARK = b'{ "__metadata__":{"' + KEY.encode() + b'":"'
DIGITS = 8
START = 8 + len(MARK)
"""Where the checksum is in a file; the first 8 bytes are the length of the header."""
CHUNK = 1 << 20


def weights_in(folder: Path, variant: str | None = None) -> list[Path]:
    """The files of safetensors that `from_pretrained` reads in a model folder; none where they are in another form."""
    return _files(folder, "model", "safetensors", variant)


def torch_weights_in(folder: Path) -> list[Path]:
    """The files of torch that `from_pretrained` reads in a model folder without files of safetensors."""
    return _files(folder, "pytorch_model", "bin", None)


def _files(folder: Path, stem: str, suffix: str, variant: str | None) -> list[Path]:
    """The one file of that name, or those that its index lists."""
    name = f"{stem}.{variant}.{suffix}" if variant else f"{stem}.{suffix}"
    if (folder / name).is_file():
        return [folder / name]
    index = f"{stem}.{suffix}.index" + (f".{variant}" if variant else "") + ".json"
    try:
        listed: Any = json.loads((folder / index).read_bytes())["weight_map"]
        files = [folder / file for file in sorted(set(listed.values())) if Path(file).name == file]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # whoever reads the index reports it
    return [file for file in files if file.is_file()]


def write_checksums(model: object, folder: str | Path, is_main_process: bool, options: Mapping[str, Any]) -> None:
    """Write a checksum, and the model's note, into each file that its `save_pretrained` has written to `folder` with
    these options."""
    if is_main_process and is_main():
        for file in weights_in(Path(folder), options.get("variant")):
            write_checksum(file, getattr(model, NOTE, ""))


def write_checksum(file: Path, note: str = "") -> None:
    """Write a checksum into the header of a file of safetensors, by writing the file again. Raises OSError."""
    with opened_whole(file) as target, open(file, "rb") as source:  # closed in turn: Windows replaces no open file
        length = int.from_bytes(source.read(8), "little")
        fields = json.loads(source.read(length))
        metadata = {key: value for key, value in fields.pop("__metadata__", {}).items() if key not in (KEY, NOTE)}
        metadata |= {NOTE: note} if note else {}
        rest = json.dumps({"__metadata__": metadata, **fields}, ensure_ascii=False, separators=(",", ":")).encode()
        rest = rest.removeprefix(b'{"__metadata__":{')
        rest = b'"' + (b"," if metadata else b"") + rest
        rest += b" " * (-(START + DIGITS + len(rest)) % 8)  # tensors begin at a multiple of 8 bytes
        size = (len(MARK) + DIGITS + len(rest)).to_bytes(8, "little")
        checksum = zlib.crc32(rest, zlib.crc32(size))
        while chunk := source.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
        source.seek(8 + length)
        target.write(size + MARK + f"{checksum:0{DIGITS}x}".encode() + rest)
        shutil.copyfileobj(source, target, CHUNK)


def note_in(file: Path) -> str:
    """The note that was written with the checksum of a file; empty where there is none, or another tool wrote it."""
    try:
        with open(file, "rb") as source:
            if source.read(START)[8:] != MARK:
                return ""
        with safe_open(file, "np") as opened:
            return opened.metadata().get(NOTE, "")
    except (OSError, SafetensorError):
        return ""  # whoever loads the file reports it


def refuse_damaged(file: Path) -> None:
    """Raise CheckpointError where a file with a checksum of ours has other bytes than those that were written."""
    try:
        with open(file, "rb", buffering=0) as source:
            start = source.read(START + DIGITS)
            if start[8:START] != MARK:
                return
            checksum = zlib.crc32(start[:8])
            while chunk := source.read(CHUNK):
                checksum = zlib.crc32(chunk, checksum)
    except OSError:
        return  # whoever loads the file reports it
    found, written = f"{checksum:0{DIGITS}x}", start[START:].decode("latin-1")
    if found != written:
        raise CheckpointError(
            f"{file}: damaged (its checksum is {found}, and was {written!r} when written); copy or train it again"
        )
