"""Webdataset shards: tars of images and texts as img2dataset writes them, and those of `evle data shards`.

    00000.tar   000000000.jpg  000000000.txt  000000000.json   000000001.jpg  ...

Samples are read at their offsets (`evle.data.formats.tars`), so that their order is the loader's, a function of (seed,
epoch), and a run resumes in the middle of a shard. Tars are read directly and not through the webdataset library, which
only knows them as streams; the files are the same. A packed image is stored in its tar as it was.
"""

import hashlib
import logging
import math
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from evle.data.custom.joined import sign_note
from evle.data.custom.shard_files import find_shards, is_folder, short_names
from evle.data.custom.split_hints import splits_in_names
from evle.data.exclusion import LEFT_OUT, Exclusion, is_genome, read_exclusion
from evle.data.formats.cells import says_something, separated, texts_of
from evle.data.formats.json_lines import parse_record
from evle.data.formats.tars import Entry, Member, TarIndex, index_of, is_remote
from evle.data.samples import (
    SPLITS,
    Box,
    CaptionSample,
    MadeSamples,
    NLVR2Sample,
    Sample,
    Swap,
    Tagged,
    VCRSample,
    VQASample,
    hashed_split,
)
from evle.errors import ConfigError, DataError, SampleError, nearest
from evle.terminal import ProgressLine

logger = logging.getLogger(__name__)

Fields = dict[str, Any]

KINDS = ("captions", "vqa", "nlvr2", "vcr")
CAPTION_FIELDS = ("captions", "caption")
LOOKED_AT = 200
"""Samples, spread over the tars, whose texts are looked at before any is read."""
LOOKED_AT_FAR = 16
"""The same where each costs a request."""
NAMED = 1000
"""Lines about what was left out that are kept of a source; the others are counted."""


class CaptionForm(NamedTuple):
    """Where captions are: in these fields of the JSON, or in the usual ones; and what divides one text into several."""

    fields: tuple[str, ...] = ()
    separator: str | None = None


class Shards(MadeSamples):
    """The samples of a list of tars. Returned by `shards`.

    About a kilobyte per tar stays in memory, and eight bytes per sample if a `split` selects some. `fingerprint`
    changes with keys and sizes of members and with the options; `skipped` names what the tars hold and cannot be used.
    """

    def __init__(
        self,
        task: str,
        tars: list[TarIndex],
        names: list[str],
        rows: np.ndarray | None,
        form: "CaptionForm",
        fingerprint: str,
        facts: dict[str, Any],
        unread: Sequence[str] = (),
    ):
        self.fingerprint, self._facts, self._unread = fingerprint, facts, list(unread)
        self._task, self._tars, self._names, self._rows, self._form = task, tars, names, rows, form
        self._ends = list(accumulate(map(len, tars)))

    def __len__(self) -> int:
        return self._ends[-1] if self._rows is None else len(self._rows)

    def at(self, index: int) -> Any:
        row = index if self._rows is None else int(self._rows[index])
        number = bisect_right(self._ends, row)
        tar = self._tars[number]
        entry = tar[row - self._ends[number] + len(tar)]
        return _sample(self._task, tar, entry, f"{self._names[number]}/{entry.key}", self._form)

    @property
    def skipped(self) -> list[str]:
        """One line for each file that is not read, each damaged tar, and each sample in a tar that cannot be used."""
        return [*self._unread[:NAMED], *_more(len(self._unread) - NAMED), *_lines_about(self._tars)]

    @property
    def num_skipped(self) -> int:
        """How many these are, named or not."""
        return len(self._unread) + sum(sum(tar.left_out.values()) + bool(tar.damage) for tar in self._tars)

    @property
    def damaged(self) -> list[str]:
        """One line for each tar that cannot be read to its end."""
        return [f"{tar.tar}: {tar.damage}" for tar in self._tars if tar.damage]

    def describe(self) -> dict[str, Any]:
        """Plain facts for a report."""
        facts: dict[str, Any] = {"shards": len(self._tars), "samples": len(self)}
        left_out: Counter[str] = Counter()
        for tar in self._tars:
            left_out.update(tar.left_out)
        if left_out:
            facts["left out"] = ", ".join(f"{reason}: {count:,}" for reason, count in left_out.most_common())
        if self.damaged:
            facts["damaged shards"] = len(self.damaged)
        if self._unread:
            facts["files and links not read"] = len(self._unread)
        return facts | self._facts


def shards(
    path: str | os.PathLike[str] | Sequence[str],
    task: str = "captions",
    split: str | Sequence[str] | None = None,
    *,
    caption_field: str | Sequence[str] | None = None,
    caption_separator: str | None = None,
    shares: Sequence[float] = (0.8, 0.1, 0.1),
    exclude: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    cache: str | None = None,
) -> Shards:
    """The samples of webdataset shards.

    `path`: a folder (every .tar below it), a file, a brace pattern ("cc3m/{00000..00331}.tar"), a glob, a URL that
    fsspec opens (s3://, hdfs://, gs://; the libraries for it installed), or a list of these.

    `task` "captions" reads images with a .txt, or a .json that has a `caption`; `caption_field` names other fields of
    the JSON to take captions from, several following one another, and `caption_separator` what divides a text into
    several captions. The other tasks, and captions with boxes and tags, come from shards that `evle data shards`
    packed, whose JSON holds the sample. A sample's key is the packed one, else tar and name in it; `match_id` the
    packed one, else the first caption.

    `split` reads the subfolder of that name; without one, samples with captions are divided by a hash of their key into
    train, val, test of `shares`. `exclude` names images of downstream tasks (see `read_exclusion`): samples whose JSON
    has the `url` of one, or whose packed key is its name, are left out; each sample's JSON is read for it. Tars are
    indexed when first seen; `cache` is a folder for the indexes, which are next to the tars by default.

    Raises DataError for missing and unreadable tars and tars of another task, ConfigError for options that cannot work.
    """
    if task not in KINDS:
        raise ConfigError(f"task={task!r}: {nearest(task, KINDS)}")
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"shares={list(shares)} must be three shares (train, val, test) that sum to 1")
    fields = (caption_field,) if isinstance(caption_field, str) else tuple(caption_field or ())
    paths = [os.fspath(path)] if isinstance(path, str | os.PathLike) else [os.fspath(each) for each in path]
    wanted = [split] if isinstance(split, str) else list(split) if split is not None else []
    in_folders = [os.path.join(each, name) for each in paths for name in wanted]
    if wanted and all(map(is_folder, in_folders)):
        paths, wanted = in_folders, []
    if wanted and task != "captions":
        raise DataError(
            f"{paths[0]}: no subfolder {wanted[0]!r}, and shards of {task} are not divided by a hash, which would put "
            "questions about one image into several splits; pack each split into a subfolder of its name"
        )
    for name in wanted:
        if name not in SPLITS:
            raise DataError(f"{paths[0]}: no split {name!r}; {nearest(name, SPLITS)}")
    unread: list[str] = []
    files = find_shards(paths, unread)
    tars = []
    with ProgressLine(len(files), "shards", visible=len(files) > 1) as progress:
        for file in files:
            tars.append(index_of(file, cache))
            progress.advance()
    names = short_names(files)
    _refuse_split_names(paths[0], names if wanted else [])
    if not sum(map(len, tars)):
        about = next(_lines_about(tars), "they hold no images")
        raise DataError(f"{paths[0]}: no usable samples in {len(tars)} shards; {about}")
    _refuse_other_task(tars, task)
    form = CaptionForm(fields, caption_separator)
    if task == "captions":
        _refuse_unclear(paths[0], tars, form, is_divided=bool(wanted))
    rows = None
    if wanted:
        keys = (f"{name}/{key}" for name, tar in zip(names, tars) for key in tar.all_keys())
        rows = np.flatnonzero(np.fromiter((hashed_split(key, shares) in wanted for key in keys), bool))
    identity: tuple[Any, ...] = ([tar.digest for tar in tars], names, task, fields, wanted)
    identity += (tuple(shares) if wanted else (), *([] if caption_separator is None else [caption_separator]))
    facts: dict[str, Any] = {}
    if excluded := read_exclusion(exclude):
        out = _excluded_rows(tars, excluded)
        rows = np.arange(len(out)) if rows is None else rows
        facts = excluded.facts(int(out[rows].sum()))
        rows = rows[~out[rows]]
        identity += (excluded.fingerprint,)
        if not len(rows):
            raise DataError(f"{paths[0]}: no sample is left; all {facts[LEFT_OUT]:,} were excluded")
    fingerprint = hashlib.blake2b(repr(identity).encode(), digest_size=8).hexdigest()
    return Shards(task, tars, names, rows, form, fingerprint, facts, unread)


def _refuse_split_names(path: str, names: list[str]) -> None:
    """Raise DataError where the tars are named after several splits, which a division by a hash would not follow."""
    if len(said := splits_in_names(names)) > 1 and "train" in said:
        shown = ", ".join(f"{name} ({said[name]}.tar)" for name in said)
        raise DataError(
            f"{path}: its tars are named after splits, {shown}; put those of each split into a folder of its name, "
            "or set path to the tars of one split and split=null"
        )


def _excluded_rows(tars: list[TarIndex], excluded: Exclusion) -> np.ndarray:
    """bool (samples,): whether each sample of all the tars shows an image to leave out."""
    out = np.zeros(sum(map(len, tars)), bool)
    known, row = False, 0
    for tar in tars:
        for index in range(len(tar)):
            entry = tar[index]
            with suppress(SampleError):  # damaged; the loader names it
                fields = _read_fields(tar, entry, entry.key)
                names = [str(fields["url"])] if fields.get("url") else []
                key = str(fields.get("key", "")).partition("#")[0]
                if (_is_packed(fields) and not key.rpartition("/")[2].isdecimal()) or is_genome(key):
                    names.append(key)  # another number is that of a table's row
                known |= bool(names)
                out[row] = any(map(excluded.holds, names))
            row += 1
    if not known:
        raise ConfigError(
            f"{tars[0].tar}: its samples have neither a url nor the key of a packed sample, so that exclude cannot "
            "recognise the images of downstream tasks; leave it out, or pack the corpus with `evle data shards`"
        )
    return out


def _lines_about(tars: list[TarIndex]) -> Iterator[str]:
    given, unnamed = 0, 0
    for tar in tars:
        lines = [f"{tar.tar}: {tar.damage}"] if tar.damage else []
        lines += [f"{tar.tar}: {line}" for line in tar.named]
        yield from lines[: NAMED - given]
        unnamed += max(0, given + len(lines) - NAMED) + sum(tar.left_out.values()) - len(tar.named)
        given = min(NAMED, given + len(lines))
    yield from _more(unnamed)


def _more(count: int) -> list[str]:
    return [f"... and {count:,} more"] if count > 0 else []


# --- reading


def _refuse_other_task(tars: list[TarIndex], task: str) -> None:
    """Raises DataError when the first sample is one of another task."""
    tar = next(tar for tar in tars if len(tar))
    entry = tar[0]
    try:
        kind = _read_fields(tar, entry, entry.key).get("kind")
    except SampleError:
        return  # damaged; the loader names it
    if kind in KINDS and kind != task:
        raise DataError(f"{tar.tar}: its samples are {kind}, not {task}; read them with --kind {kind} or task: {kind}")
    if kind not in KINDS and task != "captions":
        raise DataError(
            f"{tar.tar}: its samples are images with captions; samples of {task} are read from shards that "
            "`evle data shards` packed"
        )


def _is_packed(fields: Fields) -> bool:
    """Whether `evle data shards` wrote a sample; other programs may mean something else by "kind"."""
    return fields.get("kind") in KINDS


def _read_fields(tar: TarIndex, entry: Entry, key: str) -> Fields:
    """The fields of a sample's JSON, none where it has no JSON."""
    if not entry.json.size:
        return {}
    return parse_record(tar.member(entry.json).read(), f"{key}: its JSON", kind=dict, error=SampleError)


def _refuse_unclear(path: str, tars: Sequence[TarIndex], form: CaptionForm, *, is_divided: bool) -> None:
    """Raise DataError where the first samples' texts look like several captions each, or their JSON says a split that
    a division by a hash would not follow."""
    texts: list[str] = []
    said: dict[str, str] = {}
    most = LOOKED_AT_FAR if is_remote(tars[0].tar) else LOOKED_AT
    for tar in tars[:: max(1, len(tars) // most)]:
        for entry in map(tar.__getitem__, range(min(len(tar), max(2, most // len(tars))))):
            with suppress(SampleError, DataError, TypeError, ValueError, KeyError):  # the loader names it
                fields = _read_fields(tar, entry, entry.key)
                if _is_packed(fields):
                    continue
                said.update(splits_in_names([str(fields.get("split", ""))]))
                sample = _caption_sample(tar, entry, entry.key, tar.member(entry.image), fields, form)
                texts += sample.captions
    if is_divided and "train" in said and len(said) > 1:
        raise DataError(
            f"{path}: the JSON of its samples says split {', '.join(map(repr, said.values()))}, which a division by a "
            "hash would not follow; put the samples of each split into a folder of its name"
        )
    if form.separator is None and (
        note := sign_note(pa.chunked_array([pa.array(texts, pa.large_string())]), "captions")
    ):
        raise DataError(f"{path}: {note}")


def _sample(task: str, tar: TarIndex, entry: Entry, key: str, form: CaptionForm) -> Sample:
    """One sample. Raises SampleError for one that its members do not make."""
    try:
        fields = _read_fields(tar, entry, key)
    except SampleError as error:
        if task != "captions" or form.fields or not entry.text.size:
            raise
        _note(f"{error}; its caption is taken from its .txt")
        fields = {}
    image = tar.member(entry.image)
    try:
        if _is_packed(fields):
            key = str(fields["key"])
        if task == "captions":
            return _caption_sample(tar, entry, key, image, fields, form)
        if task == "nlvr2":
            second = tar.member(entry.second_image)
            if not second.size:
                raise SampleError(f"{key}: no second image (right.jpg) in its shard")
            return _nlvr2_sample(key, (image, second), fields)
        return _READERS[task](key, image, fields)
    except KeyError as error:
        raise SampleError(f"{key}: its JSON has no {error}; pack it again with `evle data shards`") from None
    except (TypeError, ValueError) as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError(f"{key}: its JSON is no sample of {task} ({error})") from None


@lru_cache(NAMED)
def _note(line: str) -> None:
    """Log a line once in each process."""
    logger.warning("%s", line)


def _caption_sample(
    tar: TarIndex, entry: Entry, key: str, image: Member, fields: Fields, form: CaptionForm
) -> CaptionSample:
    if _is_packed(fields):
        captions = _captions(fields, form.fields) if form.fields else _listed(fields, "captions")
        match_id, tags = str(fields["match_id"]), _listed(fields, "tags")
        boxes, other = tuple(map(_box, fields["boxes"])), tar.member(entry.second_image)
        swap = Swap(image=other if other.size else None, **fields["swap"]) if fields.get("swap") else None
        return CaptionSample(key, image, captions, boxes, tags, match_id, swap)
    captions = () if form.fields or not entry.text.size else _texts_in(tar.member(entry.text), key)
    if not any(map(says_something, captions)):
        captions = tuple(filter(says_something, _captions(fields, form.fields or CAPTION_FIELDS)))
    captions = tuple(dict.fromkeys(separated(list(captions), form.separator)))
    if not captions:
        others = ", ".join(sorted(name for name, value in fields.items() if isinstance(value, str | list))[:8])
        hint = f"; its JSON has {others}: name the one that holds captions as caption_field" if others else ""
        raise SampleError(f"{key}: no caption in {' or '.join(form.fields) or 'its .txt or .json'}{hint}")
    return CaptionSample(key, image, captions, match_id=captions[0].casefold())


def _captions(fields: Fields, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for name in names for text in texts_of(fields.get(name))))


def _texts_in(member: Member, key: str) -> tuple[str, ...]:
    """The caption in a .txt, or several that are written as a list."""
    try:
        text = member.read().decode("utf-8-sig")
        if "\0" in text:
            raise SampleError(f"{key}: its caption holds zero bytes, as UTF-16 text does; write the shard again")
        return tuple(dict.fromkeys(texts_of(text)))
    except UnicodeDecodeError:
        raise SampleError(f"{key}: its caption is not UTF-8 text; write the shard again") from None
    except TypeError as error:
        raise SampleError(f"{key}: its .txt: {error}; write the shard again") from None


def _vqa_sample(key: str, image: Member, fields: Fields) -> VQASample:
    return VQASample(
        key=key,
        image=image,
        question=str(fields["question"]),
        answers=_listed(fields, "answers"),
        answer_type=str(fields.get("answer_type", "")),
        question_type=str(fields.get("question_type", "")),
    )


def _nlvr2_sample(key: str, images: tuple[Member, Member], fields: Fields) -> NLVR2Sample:
    label = fields["label"]
    if not isinstance(label, bool | None):
        raise TypeError(f"the label {label!r} is not true, false or null")
    return NLVR2Sample(key, images, str(fields["sentence"]), label, str(fields.get("set_id", "")))


def _vcr_sample(key: str, image: Member, fields: Fields) -> VCRSample:
    return VCRSample(
        key=key,
        image=image,
        objects=tuple(map(_box, fields["objects"])),
        question=_tagged(fields["question"]),
        answer_choices=tuple(map(_tagged, fields["answer_choices"])),
        rationale_choices=tuple(map(_tagged, fields["rationale_choices"])),
        answer_label=fields["answer_label"],
        rationale_label=fields["rationale_label"],
    )


_READERS: dict[str, Callable[[str, Member, Fields], Sample]] = {"vqa": _vqa_sample, "vcr": _vcr_sample}


def _listed(fields: Fields, name: str) -> tuple[str, ...]:
    """The texts of a packed list. A text in its place would be read letter by letter."""
    if not isinstance(fields[name], list):
        raise TypeError(f"{name} must be a list, not {str(fields[name])[:40]!r}")
    return tuple(map(str, fields[name]))


def _box(fields: Fields) -> Box:
    box = Box(**fields)
    if not all(map(math.isfinite, (box.x, box.y, box.width, box.height))):
        raise ValueError(f"a box of {box.x}, {box.y}, {box.width}, {box.height}")
    return box


def _tagged(words: list[str | list[int]]) -> Tagged:
    return tuple(word if isinstance(word, str) else tuple(word) for word in words)
