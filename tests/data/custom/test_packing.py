"""Packed samples come back equal, packing goes on where it was cut off, and others can read what it wrote."""

import json
import tarfile
from dataclasses import replace

import pytest
from PIL import Image

from evle.data.custom.packing import encoded_image, pack
from evle.data.custom.shards import shards
from evle.data.images import open_image
from evle.data.samples import Box, CaptionSample, NLVR2Sample, Swap, VCRSample, VQASample
from evle.data.sources import read_source
from evle.data.synthetic.scenes import scenes
from evle.errors import ConfigError, DataError, SampleError
from tars import encoded


def images_of(sample):
    return sample.images if isinstance(sample, NLVR2Sample) else (sample.image,)


def without_image(sample):
    if isinstance(sample, NLVR2Sample):
        return replace(sample, images=("", ""))
    return replace(sample, image="")


@pytest.mark.parametrize("image", [None, encoded(1)])
def test_a_swapped_caption_and_its_image_survive(tmp_path, image):
    sample = CaptionSample(
        "k", encoded(), ("a dog left of a cat",), swap=Swap("a cat left of a dog", "order", image, "s")
    )
    pack([sample], tmp_path)
    found = shards(tmp_path)[0]
    assert found.image.read() == sample.image
    assert replace(found.swap, image=None) == replace(sample.swap, image=None)
    assert (found.swap.image and found.swap.image.read()) == image


@pytest.mark.parametrize("kind", ["captions", "vqa", "nlvr2", "vcr"])
def test_packed_samples_equal_the_sources(tmp_path, kind):
    source = scenes(kind, "train", count=7, size=32)
    done = pack(source, tmp_path, per_shard=3)
    assert (done.num_shards, done.num_samples, done.skipped) == (3, 7, [])
    packed = read_source("shards", {"path": str(tmp_path), "task": kind})
    assert [without_image(sample) for sample in packed] == [without_image(sample) for sample in source]
    for ours, theirs in zip(packed, source):
        for one, other in zip(images_of(ours), images_of(theirs)):
            assert open_image(one, keep_alpha=True).tobytes() == open_image(other, keep_alpha=True).tobytes()


def test_every_field_of_every_kind_survives(tmp_path):
    box = Box(1, 2.5, 3, 4, "dog", "der süße Hund")
    picture = encoded()
    samples = {
        "captions": CaptionSample("a/ü.jpg", picture, ("[x]", " y "), (box,), ("t",), "m"),
        "vqa": VQASample("q", picture, "what?", ("a", "b"), "other", "what"),
        "nlvr2": NLVR2Sample("n", (picture, encoded(1)), "both", None, "s"),
        "vcr": VCRSample("v", picture, (box, box), ("is", (0, 1), "?"), (("a",),) * 4, (((1,),),) * 4, 2, None),
    }
    for kind, sample in samples.items():
        pack([sample], tmp_path / kind)
        found = shards(tmp_path / kind, kind)[0]
        assert without_image(found) == without_image(sample)
        assert [each.read() for each in images_of(found)] == list(images_of(sample))
    with pytest.raises(DataError, match="its samples are vqa, not captions; read them with --kind vqa or task: vqa"):
        shards(tmp_path / "vqa")
    with tarfile.open(tmp_path / "vcr" / "00000.tar") as tar:
        assert tar.extractfile("000000000.txt").read() == b"is dog1 and dog2 ?"


def test_jpeg_png_and_webp_keep_their_bytes_and_others_lose_nothing(tmp_path):
    for format, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        assert encoded_image(encoded(1, format=format)) == (extension, encoded(1, format=format))
    (tmp_path / "a.bmp").write_bytes(encoded(2, format="BMP"))
    extension, content = encoded_image(tmp_path / "a.bmp")
    assert extension == "png"
    assert open_image(content).tobytes() == open_image(tmp_path / "a.bmp").tobytes()
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert open_image(encoded_image(half)[1], keep_alpha=True).getpixel((0, 0)) == (255, 0, 0, 128)


@pytest.mark.parametrize("content", [encoded()[:-200], encoded(format="PNG")[:-100], b"", b"RIFF1234WAVE"])
def test_damaged_images_are_not_packed(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(SampleError, match=r"a.jpg: "):
        encoded_image(tmp_path / "a.jpg")
    with pytest.raises(SampleError, match=r"b.jpg: no such file"):
        encoded_image(tmp_path / "b.jpg")


def captions(number, bad=()):
    return [
        CaptionSample(f"k{i}", f"missing/{i}.jpg" if i in bad else encoded(i), (f"caption {i}",), match_id=f"m{i}")
        for i in range(number)
    ]


def test_skipped_samples_are_counted_and_named(tmp_path):
    done = pack(captions(5, bad=[1, 3]), tmp_path, per_shard=2)
    assert (done.num_samples, done.num_skipped) == (3, 2)
    assert done.lines()[1:] == [
        "skipped: 2",
        "  missing/1.jpg: no such file; check its name and folder",
        "  missing/3.jpg: no such file; check its name and folder",
    ]
    assert [sample.key for sample in shards(tmp_path)] == ["k0", "k2", "k4"]
    stats = json.loads((tmp_path / "00000_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["status_dict"]) == (2, 1, {"success": 1, "failed": 1})
    assert len(stats["skipped"]) == 1
    assert stats["duration"] >= 0


def test_the_files_are_those_of_img2dataset(tmp_path):
    pack(captions(3), tmp_path, per_shard=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "00000.tar",
        "00000_stats.json",
        "00001.tar",
        "00001_stats.json",
    ]
    with tarfile.open(tmp_path / "00001.tar") as tar:
        assert tar.getnames() == ["000010000.jpg", "000010000.json", "000010000.txt"]
        about = json.loads(tar.extractfile("000010000.json").read())
        assert tar.extractfile("000010000.txt").read() == b"caption 2"
    assert (about["caption"], about["status"], about["width"], about["height"]) == ("caption 2", "success", 20, 16)


def test_webdataset_reads_what_was_packed(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    pack(captions(3), tmp_path, per_shard=2)
    found = list(webdataset.WebDataset(str(tmp_path / "{00000..00001}.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == ["000000000", "000000001", "000010000"]
    assert [sample["txt"] for sample in found] == [b"caption 0", b"caption 1", b"caption 2"]
    assert [sample["jpg"] for sample in found] == [encoded(i) for i in range(3)]


class Stopped(Exception):
    pass


def test_packing_goes_on_where_it_was_cut_off(tmp_path):
    samples = captions(200, bad=[70])
    pack(samples, tmp_path / "whole", per_shard=80)

    def stop(done, total):
        if done > 100:
            raise Stopped

    with pytest.raises(Stopped):
        pack(samples, tmp_path / "cut", per_shard=80, progress=stop)
    assert sorted(file.name for file in (tmp_path / "cut").iterdir()) == [
        "00000.tar",
        "00000_stats.json",
        "00001.tar.part",
    ]
    first = (tmp_path / "cut" / "00000.tar").stat().st_mtime_ns
    told = []
    done = pack(samples, tmp_path / "cut", per_shard=80, progress=lambda *numbers: told.append(numbers))
    assert (done.num_shards, done.num_kept, done.num_samples, len(done.skipped)) == (3, 1, 199, 1)
    assert (tmp_path / "cut" / "00000.tar").stat().st_mtime_ns == first
    assert told[-1] == (200, 200)
    for number in range(3):
        name = f"{number:05d}.tar"
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "cut").glob("*.part"))


def test_a_folder_of_other_shards_is_left_alone(tmp_path):
    pack(captions(3), tmp_path, per_shard=2)
    with pytest.raises(ConfigError, match="holds shards of other samples or another size; choose another folder"):
        pack(captions(4), tmp_path, per_shard=2)
    (tmp_path / "00000_stats.json").unlink()
    (tmp_path / "00001_stats.json").unlink()
    before = (tmp_path / "00000.tar").read_bytes()
    with pytest.raises(ConfigError, match=r"00000.tar is not a shard of these samples"):
        pack(captions(2), tmp_path, per_shard=2)
    assert (tmp_path / "00000.tar").read_bytes() == before
    with pytest.raises(ConfigError, match="per_shard=0"):
        pack(captions(2), tmp_path, per_shard=0)
