"""The scripts in examples/: their rules hold, and their doctests."""

import doctest
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from evle.data.custom.folder import folder

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return load(EXAMPLES / "emoji/build.py")


def test_the_doctests_of_the_emoji_script_hold(build):
    result = doctest.testmod(build)
    assert result.attempted
    assert not result.failed


def test_a_concept_is_in_training_or_held_out_but_never_both(build):
    for number in range(200):
        concept = f"thing {number}"
        splits = {style: build.split_of(concept, style) for style in build.STYLES}
        held_out = splits.pop(build.HELD_OUT_STYLE)
        assert len(set(splits.values())) == 1
        assert held_out == ("test_style" if splits["noto"] == "train" else "test_both")


def test_variants_of_a_person_are_one_concept(build):
    concepts = {
        build.Emoji("1", 1, 1, {"en": name}, {"en": []}).concept
        for name in ("man tipping hand", "woman tipping hand", "person tipping hand")
    }
    assert concepts == {"tipping hand"}


def test_emoji_become_rows_from_packages_as_npm_lays_them_out(build, tmp_path):
    data = [
        {"hexcode": "2764-FE0F", "label": "red heart", "tags": ["love"], "group": 0, "subgroup": 0},
        {"hexcode": "1F3FB", "label": "light skin tone", "group": 2},
    ]
    for locale, label in (("en", "red heart"), ("de", "rotes Herz")):
        target = tmp_path / "emojibase-data" / locale
        target.mkdir(parents=True)
        (target / "data.json").write_text(json.dumps([{**data[0], "label": label}, data[1]]), encoding="utf-8")
    package = tmp_path / "@iconify-json" / "noto"
    package.mkdir(parents=True)
    icons = {"icons": {"heart": {"body": '<path d="M0 0h9v9z"/>'}}, "width": 128, "height": 128}
    for name, content in (
        ("icons", icons),
        ("info", {"license": {"spdx": "Apache-2.0"}}),
        ("package", {"version": "1.2.9"}),
        ("chars", {"2764": "heart"}),
    ):
        (package / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    emoji = build.read_emoji(tmp_path, ["de"])
    drawn, facts = build.read_icons(tmp_path, "noto", emoji)
    assert 'viewBox="0 0 128 128"' in drawn["2764"]
    (row,) = build.rows(emoji, "noto", drawn, facts)
    assert row == {
        "image": "images/noto/2764.webp",
        "captions": ["red heart"],
        "keywords": ["love"],
        "concept": "red heart",
        "style": "noto",
        "source": "npm:@iconify-json/noto@1.2.9",
        "licence": "Apache-2.0",
        "split": build.split_of("red heart", "noto"),
        "captions_de": ["rotes Herz"],
        "keywords_de": ["love"],
    }


def test_a_package_that_is_missing_is_named_with_the_cure(build, tmp_path):
    with pytest.raises(SystemExit, match=r"icons\.json: no such file; run `npm install`"):
        build.read_icons(tmp_path, "noto", [])
    with pytest.raises(SystemExit, match="choose locales from none: run npm install first"):
        build.read_emoji(tmp_path, [])


def test_the_example_images_are_a_folder_that_can_be_read():
    samples = folder(EXAMPLES / "images", "captions", None)
    assert len(samples) == 18
    assert not samples.skipped
