"""Tiny models for each tab of the demo, and an image that no tab may open."""

import struct
import zlib
from pathlib import Path

from evle.models.vle import VLEForPreTraining, VLEForVCRQ2A, VLEForVCRQA2R
from evle.run.stages import train
from micro import caption_samples, micro_run, nlvr2_samples, vqa_samples
from vle_folders import save_released


def make_models(folder: Path) -> dict[str, Path]:
    """One model for each head that a tab needs, barely trained or not at all, by the name of its folder."""
    for task, samples in (("vqa", vqa_samples()), ("retrieval", caption_samples()), ("nlvr2", nlvr2_samples())):
        train(micro_run(folder / task, task), samples={"train": samples, "test": samples})
    for name, head, fields in (
        ("pretrained", VLEForPreTraining, {"objectives": ["mlm", "itm", "pbc"]}),
        ("q2a", VLEForVCRQ2A, {"num_token_types": 12}),
        ("qa2r", VLEForVCRQA2R, {"num_token_types": 12}),
    ):
        save_released(folder / name, head, **fields)
    return {name: folder / name for name in ("vqa", "retrieval", "nlvr2", "pretrained", "q2a", "qa2r")}


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
