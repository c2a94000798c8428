"""Sources are found by name, unknown names and options are refused with a hint, and mixing repeats or thins them."""

import json
import pickle

import pytest

import corpora
import reasoning_corpora
from easy_vqa_package import write_easy_vqa
from evle.data.samples import CaptionSample, NLVR2Sample, VCRSample, VQASample
from evle.data.sources import SOURCES, mix, read_source
from evle.errors import ConfigError
from saved_tables import rows, save, table
from tars import caption_members, write_tar

TYPES = {"captions": CaptionSample, "vqa": VQASample, "nlvr2": NLVR2Sample, "vcr": VCRSample, "swaps": CaptionSample}


class Samples(list):
    fingerprint = "f"
    skipped = ("left out",)


def captions(letter, number):
    return Samples(CaptionSample(f"{letter}{i}", b"", ("x",), match_id="m" if i else "") for i in range(number))


def test_every_source_is_lazy_picklable_and_has_a_fingerprint(tmp_path):
    (tmp_path / "captions.jsonl").write_text(
        "".join(json.dumps({"image": f"{name}.png", "caption": name}) + "\n" for name in "abcdefgh")
    )
    options = {"scenes": {}, "cutouts": {"path": str(tmp_path), "images": ["train", "val", "test"]}}
    options["folder"] = {"path": str(tmp_path)}
    options["shards"] = {"path": str(write_tar(tmp_path / "0.tar", caption_members(*range(8))))}
    options["saved-dataset"] = {"path": str(save(tmp_path / "saved", [table(rows(*range(8)))]))}
    corpora.write_all(tmp_path)
    options |= {name: corpora.options_of(name, tmp_path) for name in corpora.OPTIONS}
    options |= reasoning_corpora.write_all(tmp_path)
    options["easy-vqa"] = {"path": str(write_easy_vqa(tmp_path / "easy-vqa")), "task": "vqa"}
    options |= {"swaps": {"task": "swaps"}, "boxes": {"task": "vqa"}}
    options["nlvr"] = {"path": str(reasoning_corpora.nlvr(tmp_path / "nlvr")), "task": "vqa"}
    assert set(options) == set(SOURCES)
    for name, own in options.items():
        # in most of them no image is there: none is opened
        samples = read_source(name, {"task": "captions", "split": "train", **own})
        assert isinstance(samples[0], TYPES[own.get("task", "captions")])
        assert pickle.loads(pickle.dumps(samples))[0] == samples[0]
        assert samples.fingerprint
        assert samples.describe()["samples"] == len(samples)


def test_a_source_yields_the_sample_type_of_its_task():
    assert isinstance(read_source("scenes", {"task": "vqa"})[0], VQASample)


def test_unknown_names_and_options_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'scene' does not exist; did you mean 'scenes'"):
        read_source("scene", {})
    with pytest.raises(ConfigError, match=r"no option 'coutn' \(did you mean 'count'\?\), 'sede' \(did you mean 'seed"):
        read_source("scenes", {"coutn": 3, "sede": 1})
    with pytest.raises(ConfigError, match="'folder' needs path"):
        read_source("folder", {})


def test_weights_repeat_or_thin_out_a_source():
    mixed = mix([captions("a", 3), captions("b", 10)], [2, 0.3])
    assert [sample.key for sample in mixed] == ["a0", "a1", "a2", "a0~2", "a1~2", "a2~2", "b0", "b3", "b6"]
    assert [sample.match_id for sample in mixed][3:5] == ["a0", "m"]
    assert mixed[-1] == mixed[8]
    assert mixed[1:3] == [mixed[1], mixed[2]]
    with pytest.raises(IndexError):
        mixed[9]
    assert mixed.skipped == ["left out", "left out"]
    assert mixed.fingerprint != mix([captions("a", 3), captions("b", 10)], [2, 0.4]).fingerprint
    assert len(mix([captions("a", 3), captions("b", 10)])) == 13


def test_impossible_weights_are_refused():
    with pytest.raises(ConfigError, match="1 weights for 2 sources"):
        mix([captions("a", 1), captions("b", 1)], [1])
    with pytest.raises(ConfigError, match="must be above 0"):
        mix([captions("a", 1)], [0])
