"""What all verbs that ask a model share, as a table over the verbs: JSON, --model, stdin, exit codes, bad input."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from commands import call
from demo_models import bomb
from evle.cli.shared import refuse_images
from evle.errors import ConfigError
from evle.models.eve import EVEConfig, EVEForNLVR2
from evle.models.vle import VLEForPreTraining, VLEForVCRQ2A, VLEForVCRQA2R
from retrieval_models import SIZES, processor, save_retrieval_model, save_vqa_model
from vle_folders import save_released

IMAGE, TEXT = "red.png", "a red ball"
BOXES = ("--object", "person 2 2 20 20", "-a", "[1] waits", "-a", "[1] works")
VERBS = {
    "ask": ("vqa", ["IMAGE", "TEXT"], []),
    "match": ("retrieval", ["IMAGE", "TEXT"], []),
    "classify": ("retrieval", ["IMAGE", "TEXT"], []),
    "compare": ("nlvr2", ["IMAGE", "blue.png", "TEXT"], []),
    "locate": ("vle", ["IMAGE", "TEXT"], ["-o", "found.png"]),
    "explain": ("vqa", ["IMAGE", "TEXT"], ["-o", "page.html"]),
    "reason": ("q2a", ["IMAGE", "TEXT"], list(BOXES)),
    "embed": ("retrieval", ["TEXT"], []),
    "search": ("index", ["TEXT"], []),
}
"""By verb: its model, its other arguments, and its options."""
WITH_IMAGE = [verb for verb, (_, arguments, _) in VERBS.items() if "IMAGE" in arguments]
WITH_MODEL = [verb for verb in VERBS if verb != "search"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, images and an index; no test changes them."""
    root = tmp_path_factory.mktemp("verbs")
    save_vqa_model(root / "vqa")
    save_retrieval_model(root / "retrieval")
    save_retrieval_model(root / "other", seed=1)
    reader = processor()
    torch.manual_seed(0)
    EVEForNLVR2(EVEConfig(**SIZES, vocab_size=len(reader.tokenizer))).save_pretrained(root / "nlvr2")
    reader.save_pretrained(root / "nlvr2")
    save_released(root / "vle", VLEForPreTraining, objectives=["mlm", "itm", "pbc"])
    save_released(root / "q2a", VLEForVCRQ2A, num_token_types=12)
    save_released(root / "qa2r", VLEForVCRQA2R, num_token_types=12)
    (root / "photos").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 30), colour).save(root / f"{colour}.png")
        shutil.copy(root / f"{colour}.png", root / "photos")
    (root / "bomb.png").write_bytes(bomb())
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("no image")
    Image.fromarray(np.full((30, 40), np.nan, np.float32)).save(root / "nan.tiff")
    call("index", root / "photos", "-o", root / "index", "--model", root / "retrieval")
    return root


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def arguments_of(verb: str, *, image: str = IMAGE, text: str = TEXT, model: str | None = None) -> list[str]:
    own, arguments, options = VERBS[verb]
    filled = [{"IMAGE": image, "TEXT": text}.get(each, each) for each in arguments]
    return [verb, model or own, *filled, *options]


def lines(output: str) -> list[str]:
    """The lines that are not about the next command."""
    return [line for line in output.splitlines() if not line.startswith("next: ")]


@pytest.mark.parametrize("verb", VERBS)
def test_json_is_one_object_per_line(verb):
    rows = [json.loads(line) for line in lines(call(*arguments_of(verb), "--json"))]
    assert rows
    assert all(isinstance(row, dict) for row in rows)


@pytest.mark.parametrize("verb", WITH_MODEL)
@pytest.mark.parametrize("form", [["--model", "MODEL"], ["-m", "MODEL"], ["--model=MODEL"]])
def test_the_model_can_be_an_option(verb, form):
    by_argument = arguments_of(verb)
    option = [each.replace("MODEL", by_argument[1]) for each in form]
    assert call(verb, *by_argument[2:], *option, "--json") == call(*by_argument, "--json")


@pytest.mark.parametrize("verb", WITH_IMAGE)
def test_an_image_comes_from_stdin(verb, folder):
    by_name = call(*arguments_of(verb), "--json")
    piped = call(*arguments_of(verb, image="-"), "--json", stdin=(folder / IMAGE).read_bytes())
    assert lines(piped) == lines(by_name)


def story(text: str) -> str:
    return json.dumps({"question": text, "objects": ["person 2 2 20 20"], "answers": ["[1] waits", "no"]})


def listed(verb: str, texts: list[str]) -> bytes:
    return "\n".join(story(text) if verb == "reason" and text else text for text in texts).encode()


@pytest.mark.parametrize("verb", VERBS)
def test_a_list_of_texts_comes_from_stdin_and_is_answered_in_order(verb):
    output = call(*arguments_of(verb, text="-"), "--json", stdin=listed(verb, ["a red ball", "", "a blue ball"]))
    rows = [json.loads(line) for line in lines(output)]
    names = [row.get("question") or row.get("text") or row.get("query") or row.get("label") for row in rows]
    assert set(names) == {"a red ball", "a blue ball"}
    if verb not in ("match", "classify"):  # which order by score
        assert list(dict.fromkeys(names)) == ["a red ball", "a blue ball"]


@pytest.mark.parametrize("verb", VERBS)
def test_some_failures_are_counted_and_end_with_1(verb):
    bad = b"\xff\xfe red" if verb != "reason" else b'{"question": 7}'
    output = call(*arguments_of(verb, text="-"), stdin=b"\n".join([listed(verb, [TEXT]), bad]), code=1)
    assert "evle: 1 of 2 inputs failed" in output
    assert any(not line.startswith("evle: ") for line in lines(output))


@pytest.mark.parametrize("verb", VERBS)
def test_only_failures_end_with_2(verb):
    output = call(*arguments_of(verb, text="-"), stdin=listed(verb, ["x" * 100_000, "y" * 200_000]), code=2)
    assert lines(output)[-1] == "evle: 2 of 2 inputs failed"
    assert all(line.startswith("evle: ") for line in lines(output))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("text", "words"),
    [("x" * 100_000, "100,000 characters; shorten"), (" ", "the text is empty"), ("?!", "punctuation")],
)
def test_a_text_that_no_model_reads_is_one_line(verb, text, words):
    assert words in one_error(arguments_of(verb, text=text))


@pytest.mark.parametrize("verb", WITH_IMAGE)
@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("bomb.png", "60000 x 60000 pixels are more than the limit"),
        ("empty.png", "empty"),
        ("text.png", "text.png"),
        ("photos", "is a folder, not an image"),
        ("nowhere.png", "no such file"),
    ],
)
def test_an_image_that_cannot_be_read_is_one_line(verb, image, words):
    assert words in one_error(arguments_of(verb, image=image))


@pytest.mark.parametrize("verb", WITH_IMAGE)
def test_pixels_that_are_not_numbers_are_one_line(verb):
    assert "no pixel is a number" in one_error(arguments_of(verb, image="nan.tiff"))


@pytest.mark.parametrize("verb", WITH_MODEL)
@pytest.mark.parametrize("model", ["nowhere", "photos"])
def test_what_is_no_model_is_one_line(verb, model):
    assert model in one_error(arguments_of(verb, model=model))


@pytest.mark.parametrize(
    ("verb", "model"),
    [
        ("ask", "retrieval"),
        ("match", "vqa"),
        ("compare", "vqa"),
        ("locate", "vqa"),
        ("reason", "qa2r"),
        ("embed", "vqa"),
    ],
)
def test_a_model_without_the_head_is_one_line(verb, model):
    assert model in one_error(arguments_of(verb, model=model))


@pytest.mark.parametrize("verb", VERBS)
def test_an_empty_stdin_is_one_line(verb):
    assert "stdin is empty" in one_error(arguments_of(verb, text="-"), stdin=b" \n")


@pytest.mark.parametrize("verb", WITH_IMAGE)
def test_stdin_is_read_once(verb):
    assert "stdin, which can be read only once" in one_error(arguments_of(verb, image="-", text="-"), stdin=b"a")


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_argument_is_a_usage_error(verb):
    assert call(verb, VERBS[verb][0], code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "photos", "a"], "photos is not an index"),
        (["search", "index", "a", "--model", "other"], "was made by another model than"),
        (["search", "index"], "nothing to look for"),
        (["search", "index", "!", "--image", IMAGE], "punctuation alone"),
        (["search", "index", "--image", "bomb.png"], "pixels are more than the limit"),
        (["search", "damaged", "a"], "damaged"),
        (["search", "index", "a", "--rerank", "2", "--rerank-model", "vqa"], "vqa"),
    ],
)
def test_an_index_that_cannot_answer_is_one_line(folder, arguments, words):
    damaged = folder / "damaged"
    if not damaged.exists():
        damaged.mkdir()
        (damaged / "index.json").write_text("[1, 2")
    assert words in one_error(arguments)


@pytest.mark.parametrize(
    ("verb", "output", "command"),
    [
        ("locate", "found.png", "evle explain vle"),
        ("explain", "page.html", "python -m webbrowser"),
        ("explain", "maps.png", "python -m webbrowser"),
    ],
)
def test_what_is_written_is_followed_by_the_next_command(folder, tmp_path, verb, output, command):
    written = call(*arguments_of(verb)[:-1], tmp_path / output)
    assert (tmp_path / output).stat().st_size > 0
    assert any(line.startswith(f"next: {command}") for line in written.splitlines())


def test_the_next_command_has_a_name_for_an_image_from_stdin(folder, tmp_path):
    arguments = arguments_of("locate", image="-")[:-1]
    written = call(*arguments, tmp_path / "found.png", stdin=(folder / IMAGE).read_bytes())
    assert "next: evle explain vle IMAGE " in written


def test_several_maps_are_numbered(tmp_path):
    call("explain", "vqa", IMAGE, "-", "-o", tmp_path / "page.html", stdin=b"red\nblue")
    assert {file.name for file in tmp_path.iterdir()} == {"page.html", "page-2.html"}


def test_the_name_of_an_image_need_not_be_utf_8(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Image.new("RGB", (40, 30), "red").save(name)
    assert json.loads(call("embed", "retrieval", "--images", name).splitlines()[0])["image"] == name


def test_embeddings_are_written_as_numpy(tmp_path):
    printed = call("embed", "retrieval", "--images", IMAGE, "empty.png", "blue.png", "-o", tmp_path / "v.npy", code=1)
    assert "1 of 3 inputs failed" in printed
    assert np.load(tmp_path / "v.npy").shape[0] == 2


# --- reason


def test_an_answer_and_a_reason_are_chosen():
    options = [*BOXES, "-r", "[1] sits", "-r", "it rains", "--reason-model", "qa2r", "--json"]
    row = json.loads(call("reason", "q2a", IMAGE, "why is [1] here?", *options))
    assert row["answer"] in ("[1] waits", "[1] works")
    assert row["reason"] in ("[1] sits", "it rains")
    assert sum(each["score"] for each in row["answers"]) == pytest.approx(1)


def test_with_the_right_answer_the_reason_alone_is_chosen():
    options = [*BOXES, "-r", "[1] sits", "-r", "it rains", "--right", "2", "--json"]
    row = json.loads(call("reason", "qa2r", IMAGE, "why is [1] here?", *options))
    assert "answer" not in row
    assert len(row["reasons"]) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "there is no object; give at least one"),
        (["--object", "person 2 2 20 20", "-a", "yes"], "1 answers; give at least 2"),
        ([*BOXES, "-r", "so", "-r", "thus"], "name it with --reason-model"),
        ([*BOXES, "-r", "so"], "1 reason; give at least 2"),
        ([*BOXES, "--right", "3"], "--right 3: there are 2 answers"),
        ([*BOXES, "--right", "2"], "give them with --reason"),
        ([*BOXES, "--object", "dog 1"], "object 2 is 'dog 1'"),
        ([*BOXES, "--object", "dog 90 90 2 2"], "outside of the image"),
        ([*BOXES, "-a", "[4] runs"], "[4] names no object"),
    ],
)
def test_a_question_that_makes_no_sense_is_one_line(options, words):
    assert words in one_error(["reason", "q2a", IMAGE, "why?", *options])


def test_reasons_of_a_line_need_a_model_that_chooses_them():
    line = {"question": "why?", "objects": ["person 2 2 20 20"], "answers": ["a", "b"], "reasons": ["so", "thus"]}
    said = one_error(["reason", "q2a", IMAGE, "-"], stdin=json.dumps(line).encode())
    assert "name it with --reason-model" in said


def test_an_image_is_searched_for_with_one_text():
    assert "2 texts with --image" in one_error(["search", "index", "-", "--image", IMAGE], stdin=b"a dog\na cat\n")


def one_error(arguments, stdin: bytes | None = None) -> str:
    """The one line on which a command that answers nothing ends."""
    output = call(*arguments, code=2, stdin=stdin)
    assert output.startswith("evle: ")
    assert output.count("\n") == 1, output
    return output


def test_the_name_of_an_image_is_no_text(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    refuse_images(["a dog", "none.png", "x" * 9000 + ".png"], "--image")
    with pytest.raises(ConfigError, match=r"a\.png: is an image, where a text is needed; give it with --image"):
        refuse_images(["a dog", str(tmp_path / "a.png")], "--image")


@pytest.mark.parametrize(("verb", "ending"), [("locate", "png"), ("explain", "png")])
def test_an_output_never_replaces_the_image_that_is_asked_about(folder, verb, ending, tmp_path):
    photo = tmp_path / f"photo-2.{ending}"
    shutil.copy(folder / IMAGE, photo)
    before = photo.read_bytes()
    model = folder / VERBS[verb][0]
    assert "would change" in one_error([verb, model, photo, TEXT, "-o", photo])
    numbered = [verb, model, photo, "-", "-o", tmp_path / f"photo.{ending}"]
    assert "would change" in one_error(numbered, stdin=b"a red ball\na blue ball\n")
    (tmp_path / "link.png").symlink_to(photo)
    assert "would change" in one_error([verb, model, photo, TEXT, "-o", tmp_path / "link.png"])
    assert photo.read_bytes() == before


def test_the_report_of_a_training_and_a_table_are_not_replaced(tmp_path):
    run, table = tmp_path / "run", tmp_path / "data" / "questions.csv"
    run.mkdir()
    (run / "config.yaml").write_text("task: {name: vqa}\n")
    assert "report of this run's training" in one_error(["report", run, "-o", run])
    assert "report of this run's training" in one_error(["vcr", run, run, "-o", run])
    table.parent.mkdir()
    table.write_text("image,question,answer\na.png,what?,red\n")
    assert "would change" in one_error(["data", "answers", table.parent, "-o", table])
    assert table.read_text().startswith("image,")


def test_data_that_is_not_there_is_noticed_before_the_export(folder, tmp_path):
    arguments = ["export", folder / "vqa", "-o", tmp_path / "out", "--int8", "--data", tmp_path / "nope"]
    assert "no such folder" in one_error(arguments)
    assert not (tmp_path / "out").exists()
