"""Pack samples of any source into webdataset shards, with the files that img2dataset users know.

    00000.tar   000000000.jpg  000000000.json  000000000.txt   000000001.jpg  ...     00000_stats.json

A JSON member holds the whole sample, so that what is read back equals what was packed. The tars are written by
tarfile: webdataset's own writer is a thin cover over it, and would be one more dependency for nothing. webdataset reads
these files, as a test shows. The same samples make the same bytes.
"""

import hashlib
import io
import json
import os
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from evle.data.images import open_image
from evle.data.samples import CaptionSample, ImageSource, NLVR2Sample, Sample, Stored, Tagged, VCRSample, VQASample
from evle.errors import ConfigError, SampleError

KIND_OF: dict[type, str] = {CaptionSample: "captions", VQASample: "vqa", NLVR2Sample: "nlvr2", VCRSample: "vcr"}
NAMED = 1000
"""So many skipped samples of a shard are named in its statistics; all are counted."""

_BLOCK = 64  # samples prepared ahead


@dataclass
class Packing:
    """What `pack` did: tars in the folder, those of them that were there already, samples packed, and a line for each
    sample that could not be."""

    folder: str
    num_shards: int = 0
    num_kept: int = 0
    num_samples: int = 0
    num_skipped: int = 0
    skipped: list[str] = field(default_factory=list)

    def lines(self, most: int = 20) -> list[str]:
        """Plain lines for a terminal."""
        kept = f", {self.num_kept:,} of them from before" if self.num_kept else ""
        lines = [f"{self.folder}: {self.num_samples:,} samples in {self.num_shards:,} shards{kept}"]
        if self.num_skipped:
            lines.append(f"skipped: {self.num_skipped:,}")
            lines += [f"  {line}" for line in self.skipped[:most]]
            if self.num_skipped > most:
                lines.append(f"  ... and {self.num_skipped - most:,} more, named in the *_stats.json files")
        return lines


def pack(
    samples: Sequence[Sample],
    folder: str | os.PathLike[str],
    *,
    per_shard: int = 10_000,
    num_threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Packing:
    """Write samples into `folder` as 00000.tar, 00001.tar ..., `per_shard` samples each (img2dataset's default).

    Images that are JPEG, PNG or WebP keep their bytes; others become PNG, which loses nothing. Each is decoded once:
    what cannot be read is skipped, counted and named. An interrupted call resumes by the same call: finished shards are
    kept. An image is written with every sample that shows it.

    Raises ConfigError where the folder holds shards of other samples.
    """
    if per_shard < 1:
        raise ConfigError(f"per_shard={per_shard} must be at least 1")
    base, done = Path(folder), Packing(str(folder))
    base.mkdir(parents=True, exist_ok=True)
    num_shards = -(-len(samples) // per_shard)
    digits, key_digits = max(5, len(str(num_shards - 1))), max(4, len(str(per_shard - 1)))
    identity = f"{getattr(samples, 'fingerprint', '')}:{len(samples)}:{per_shard}"
    finished = [_read_stats(base, f"{number:0{digits}d}") for number in range(num_shards)]
    _refuse_other_shards(base, finished, identity)
    with ThreadPoolExecutor(num_threads) as pool:
        for number, stats in enumerate(finished):
            rows = range(number * per_shard, min(len(samples), (number + 1) * per_shard))
            if stats is None:
                report = partial(_tell, progress, rows.start, len(samples)) if progress is not None else None
                stats = _write_shard(
                    samples, rows, base / f"{number:0{digits}d}.tar", identity, key_digits, pool, report
                )
            else:
                done.num_kept += 1
            done.num_shards += 1
            done.num_samples += stats["successes"]
            done.num_skipped += stats["count"] - stats["successes"]
            done.skipped += stats["skipped"]
    return done


def _tell(progress: Callable[[int, int], None], first: int, total: int, count: int) -> None:
    progress(first + count, total)


def _read_stats(folder: Path, name: str) -> dict[str, Any] | None:
    """The statistics of a finished shard; None where there is none, or half of one."""
    try:
        stats = json.loads((folder / f"{name}_stats.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return stats if (folder / f"{name}.tar").is_file() else None


def _refuse_other_shards(folder: Path, finished: list[dict[str, Any] | None], identity: str) -> None:
    for stats in finished:
        if stats is not None and stats.get("source") != identity:
            raise ConfigError(f"{folder}: holds shards of other samples or another size; choose another folder")
    names = (f"{number:0{max(5, len(str(len(finished) - 1)))}d}.tar" for number in range(len(finished)))
    ours = {name for name, stats in zip(names, finished, strict=True) if stats is not None}
    others = sorted(file.name for file in folder.glob("*.tar") if file.name not in ours)
    if others:
        raise ConfigError(f"{folder}: {others[0]} is not a shard of these samples; choose another folder")


def _write_shard(
    samples: Sequence[Sample],
    rows: range,
    file: Path,
    identity: str,
    key_digits: int,
    pool: ThreadPoolExecutor,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    """Writes the tar under another name, its statistics, then gives it its own: a tar without statistics is none of
    ours. Returns the statistics."""
    start, statuses, skipped = time.time(), Counter[str](), list[str]()
    part = file.with_suffix(".tar.part")
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for position, found in enumerate(_members(samples, rows, pool)):
            if isinstance(found, str):
                statuses["failed"] += 1
                skipped.append(found)
            else:
                statuses["success"] += 1
                for extension, content in found:
                    info = tarfile.TarInfo(f"{file.stem}{position:0{key_digits}d}.{extension}")
                    info.size, info.mode = len(content), 0o444
                    tar.addfile(info, io.BytesIO(content))
            if progress is not None and (position % _BLOCK == 0 or position == len(rows) - 1):
                progress(position + 1)
    end = time.time()
    stats = {
        "count": len(rows),
        "successes": statuses["success"],
        "duration": end - start,
        "start_time": start,
        "end_time": end,
        "status_dict": dict(statuses),
        "source": identity,
        "skipped": skipped[:NAMED],
    }
    stats_part = file.with_name(f"{file.stem}_stats.json.part")
    stats_part.write_text(json.dumps(stats, indent=4), encoding="utf-8")
    os.replace(stats_part, file.with_name(f"{file.stem}_stats.json"))
    os.replace(part, file)
    return stats


Members = list[tuple[str, bytes]]


def _members(samples: Sequence[Sample], rows: range, pool: ThreadPoolExecutor) -> Iterator[Members | str]:
    """The members of each sample, or why it is skipped, in order; a few samples are prepared at once."""

    def prepare(row: int) -> Members | str:
        try:
            return members_of(samples[row])
        except SampleError as error:
            return str(error)

    for first in range(rows.start, rows.stop, _BLOCK):
        yield from pool.map(prepare, range(first, min(rows.stop, first + _BLOCK)))


def members_of(sample: Sample) -> Members:
    """(extension, bytes) of what a shard holds of a sample. Raises SampleError for images that cannot be read."""
    text = _text_of(sample)
    sources = _images_of(sample)
    sides = ("left.", "right.") if len(sources) == 2 else ("",)
    members, sizes, digests = list[tuple[str, bytes]](), [], []
    for side, source in zip(sides, sources):
        form, content = encoded_image(source)
        members.append((side + form, content))
        sizes.append(Image.open(io.BytesIO(content)).size)
        digests.append(hashlib.sha256(content).hexdigest())
    own = {each.name: getattr(sample, each.name) for each in fields(sample) if each.name not in ("image", "images")}
    for name in ("boxes", "objects"):
        if name in own:
            own[name] = [asdict(box) for box in own[name]]
    if swap := own.pop("swap", None):
        own["swap"] = {"caption": swap.caption, "type": swap.type, "set_id": swap.set_id}
    about = {
        "caption": text,
        "kind": KIND_OF[type(sample)],
        "status": "success",
        "width": sizes[0][0],
        "height": sizes[0][1],
        "sha256": digests[0],
        **own,
    }
    return [*members, ("json", json.dumps(about).encode()), ("txt", text.encode("utf-8", "replace"))]


def _images_of(sample: Sample) -> tuple[ImageSource, ...]:
    """One image, or two: the pair of NLVR2, or a caption's image and the one of which its swap is true."""
    if isinstance(sample, NLVR2Sample):
        return sample.images
    if isinstance(sample, CaptionSample) and sample.swap is not None and sample.swap.image is not None:
        return sample.image, sample.swap.image
    return (sample.image,)


def encoded_image(source: ImageSource) -> tuple[str, bytes]:
    """(extension, bytes) of an image: as it is where that is JPEG, PNG or WebP, else as PNG.

    Raises SampleError for what cannot be decoded.

    >>> encoded_image(Image.new("RGB", (2, 2)))[0]
    'png'
    """
    if not isinstance(source, Image.Image):
        content = _bytes_of(source)
        form = _form_of(content)
        if form is not None:
            open_image(source, size_hint=1)  # the smallest decoding that notices damage
            return form, content
    stream = io.BytesIO()
    open_image(source, keep_alpha=True).save(stream, "PNG")
    return "png", stream.getvalue()


def _bytes_of(source: ImageSource) -> bytes:
    """The encoded image; nothing where it is drawn or cannot be read, of which opening it will tell."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, Stored):
        return source.read()
    if isinstance(source, str | os.PathLike):
        try:
            return Path(source).read_bytes()
        except OSError:
            return b""
    return b""


def _form_of(content: bytes) -> str | None:
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "webp"
    return None


def _text_of(sample: Sample) -> str:
    """What other programs are given as the sample's text."""
    match sample:
        case CaptionSample():
            return sample.captions[0] if sample.captions else ""
        case VQASample():
            return sample.question
        case NLVR2Sample():
            return sample.sentence
        case VCRSample():
            return " ".join(_words(sample.question, sample))
    raise ConfigError(f"{type(sample).__name__} cannot be packed; give samples of {', '.join(KIND_OF.values())}")


def _words(text: Tagged, sample: VCRSample) -> Iterator[str]:
    for word in text:
        yield (
            word if isinstance(word, str) else " and ".join(f"{sample.objects[each].label}{each + 1}" for each in word)
        )
