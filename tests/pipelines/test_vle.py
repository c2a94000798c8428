"""The pipelines that serve both families: VLE's folders are read as they are, and images as VLE sees them."""

import math
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from evle.config import dump_yaml
from evle.data.samples import Box, VCRSample
from evle.errors import CheckpointError, ConfigError, DataError, SampleError
from evle.models.eve import EVEConfig, EVEForNLVR2
from evle.models.vle import (
    VLEForITM,
    VLEForNLVR2,
    VLEForPBC,
    VLEForPreTraining,
    VLEForRetrieval,
    VLEForVCRQ2A,
    VLEForVCRQA2R,
    VLEForVQA,
    VLEProcessor,
)
from evle.pipelines import (
    AnswerChoicePipeline,
    ComparePipeline,
    EmbedPipeline,
    LocalisePipeline,
    MatchPipeline,
    ReasonChoicePipeline,
    VQAPipeline,
)
from evle.search import ImageIndex
from evle.tasks.task import TextConfig
from evle.transforms.heatmap import DIMMEST
from retrieval_models import SIZES
from retrieval_models import processor as eve_processor
from vle_folders import ANSWERS, plain_image, save_released

RED, BLUE = Image.new("RGB", (50, 40), "red"), Image.new("RGB", (50, 40), "blue")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vle")
    vcr = {"num_token_types": 12}
    kinds = {
        "vqa": (VLEForVQA, {"id2label": dict(enumerate(ANSWERS))}),
        "itm": (VLEForITM, {}),
        "pbc": (VLEForPBC, {}),
        "retrieval": (VLEForRetrieval, {}),
        "nlvr2": (VLEForNLVR2, {}),
        "pretrained": (VLEForPreTraining, {"objectives": ["mlm", "itm", "pbc"]}),
        "q2a": (VLEForVCRQ2A, vcr),
        "qa2r": (VLEForVCRQA2R, vcr),
    }
    found = {name: save_released(root / name, head, **fields) for name, (head, fields) in kinds.items()}
    reader = eve_processor()
    torch.manual_seed(0)
    EVEForNLVR2(EVEConfig(**SIZES, vocab_size=len(reader.tokenizer))).save_pretrained(root / "eve-nlvr2")
    reader.save_pretrained(root / "eve-nlvr2")
    return {**found, "eve-nlvr2": root / "eve-nlvr2"}


# --- loading


def test_a_released_folder_is_read_as_it_is(folders):
    answer = VQAPipeline(folders["vqa"])
    assert {row["answer"] for row in answer(plain_image(), "What?", top_k=9)[0]["answers"]} == set(ANSWERS)
    assert answer.text.clean is False
    assert not answer.model.training


def test_images_and_texts_reach_the_model_as_through_its_own_processor(folders):
    answer = VQAPipeline(folders["vqa"])
    reader = VLEProcessor.from_pretrained(folders["vqa"])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 81, 3), dtype=np.uint8))
    expected = reader(images=noise, text="What IS it?", return_tensors="pt")
    torch.testing.assert_close(answer.pixel_values([answer.read(noise)]), expected["pixel_values"], atol=0.03, rtol=0)
    assert answer.tokens(["What IS it?"])["input_ids"].tolist() == expected["input_ids"].tolist()


def test_a_weight_file_that_runs_code_is_refused_and_runs_nothing(folders, tmp_path):
    marker = tmp_path / "was-run"

    class Evil:
        def __reduce__(self):
            return open, (str(marker), "w")

    folder = save_released(tmp_path / "evil", VLEForITM)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"vle.text_projection_layer.bias": Evil()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: holds more than tensors \(io\.open\), and code"):
        MatchPipeline(folder)
    assert not marker.exists()


def test_a_checkpoint_serves_every_head_that_it_holds(folders):
    scores = [MatchPipeline(folders[name])(RED, "a photo")[0]["score"] for name in ("itm", "retrieval", "pretrained")]
    assert all(0 < score < 1 for score in scores)
    assert LocalisePipeline(folders["pretrained"])(RED, "a photo")[0].scores.shape == (4, 4)
    with pytest.raises(CheckpointError, match="holds VLEForVQA, but VLEForITM is needed"):
        MatchPipeline(folders["vqa"])
    with pytest.raises(CheckpointError, match="holds VLEForPreTraining, but VLEForRetrieval is needed"):
        EmbedPipeline(folders["pretrained"])
    with pytest.raises(CheckpointError, match="another family: model_type 'eve'"):
        LocalisePipeline(folders["eve-nlvr2"])


def test_matching_is_the_same_by_either_head(folders):
    embed = EmbedPipeline(folders["retrieval"])
    by_objects = MatchPipeline(model=embed.model, processor=embed.processor)
    by_folder = MatchPipeline(folders["retrieval"])
    assert isinstance(by_objects.model, VLEForRetrieval)
    assert isinstance(by_folder.model, VLEForITM)
    assert by_objects(RED, ["a photo", "dogs"]) == by_folder(RED, ["a photo", "dogs"])


def test_what_pairs_share_is_encoded_once_and_scored_as_pair_by_pair(folders):
    match = MatchPipeline(folders["itm"], batch_size=3)
    encoded = []
    for tower in (match.model.vle.vision_model, match.model.vle.text_model):
        tower.register_forward_hook(lambda tower, given, output: encoded.append(len(given[0])))

    def alone(image, text):
        return match(image, text)[0]["score"]

    many, texts = [RED, BLUE, plain_image()], ["a photo", "dogs", "a photo of dogs"]
    scores = [each["score"] for each in match(many, "dogs")]
    assert encoded == [3, 1]
    assert scores == pytest.approx([alone(image, "dogs") for image in many], abs=1e-5)
    encoded.clear()
    scores = [each["score"] for each in match(RED, texts)]
    assert encoded == [1, 3]
    assert scores == pytest.approx([alone(RED, text) for text in texts], abs=1e-5)


def test_images_are_indexed_and_found_with_vle_too(folders, tmp_path):
    for name, image in (("red", RED), ("blue", BLUE), ("three", plain_image())):
        (tmp_path / "photos").mkdir(exist_ok=True)
        image.save(tmp_path / "photos" / f"{name}.png")
    index = ImageIndex.build(folders["retrieval"], tmp_path / "photos", tmp_path / "index", progress=False)
    hits = index.query("a photo of dogs", k=2, rerank=3)
    assert len(hits) == 2
    assert all(hit.match is not None for hit in hits)
    assert index.query(image=tmp_path / "photos/blue.png", k=1)[0].key == "blue.png"


# --- compare


@pytest.mark.parametrize("name", ["nlvr2", "eve-nlvr2"])
def test_two_images_and_a_sentence_are_judged_together(folders, name):
    compare = ComparePipeline(folders[name], batch_size=2)
    texts = ["both are red", "a photo of dogs", "one"]
    found = compare([RED, plain_image(), RED], [BLUE, RED, BLUE], texts)
    assert [row["text"] for row in found] == texts
    for row, left, right in zip(found, [RED, plain_image(), RED], [BLUE, RED, BLUE]):
        pixels = compare.pixel_values([compare.read(left), compare.read(right)])[None]
        with torch.no_grad():
            logits = compare.model(pixel_values=pixels, **compare.tokens([row["text"]])).logits
        assert row["score"] == pytest.approx(float(logits.softmax(-1)[0, 1]), abs=1e-5)
    assert compare(RED, [BLUE, RED], "one")[0]["score"] == pytest.approx(found[2]["score"], abs=1e-5)


def test_images_to_compare_must_go_together(folders, tmp_path):
    compare = ComparePipeline(folders["nlvr2"])
    assert compare([], [], []) == []
    assert compare(RED, [], "a") == []
    with pytest.raises(DataError, match="2 left images, 3 right images and 1 texts"):
        compare([RED] * 2, [BLUE] * 3, "a")
    with pytest.raises(SampleError, match=r"none\.png"):
        compare(RED, tmp_path / "none.png", "a")


# --- localise


def test_patches_of_a_phrase_come_as_a_grid_and_a_image(folders):
    localise = LocalisePipeline(folders["pbc"], batch_size=2)
    found = localise([plain_image(), RED, plain_image()], ["dogs", "dogs", "a photo"])
    assert [each.text for each in found] == ["dogs", "dogs", "a photo"]
    assert found[0].scores.shape == (4, 4)
    assert found[0].image.size == (90, 60)
    with torch.no_grad():
        pixels = localise.pixel_values([localise.read(plain_image())])
        logits = localise.model(pixel_values=pixels, **localise.tokens(["dogs"])).logits
    torch.testing.assert_close(found[0].scores.flatten(), logits[0].softmax(-1)[:, 1], atol=1e-5, rtol=0)
    # The patch at row 1, column 2 lies at x 30 to 45 of the 60 seen, which begin at 15 of 90.
    brightness = DIMMEST + (1 - DIMMEST) * float(found[0].scores[1, 2])
    assert found[0].image.getpixel((50, 20))[1] == pytest.approx(128 * brightness, abs=1)


# --- choose


def sample(**changes) -> VCRSample:
    made = VCRSample(
        "one",
        plain_image(),
        (Box(0, 0, 30, 50, "person"), Box(30, 10, 30, 40, "dog")),
        ("What", "is", (0,), "doing", "?"),
        (((0,), "walks"), ((1,), "walks"), ("nothing",), ((0, 1), "walk")),
        (("because",), ((0,), "has", "legs"), ((1,), "barks"), ("of", "rain")),
    )
    return replace(made, **changes)


def test_samples_need_no_files_and_no_labels(folders):
    answers = AnswerChoicePipeline(folders["q2a"])
    one = answers(sample())
    assert len(one) == 1
    assert one[0].key == "one"
    assert sum(one[0].scores) == pytest.approx(1)
    assert one[0].choice == max(range(4), key=one[0].logits.__getitem__)
    labelled = answers([sample(answer_label=3), sample(question=("Why", (1,)))])
    assert labelled[0].scores == pytest.approx(one[0].scores, abs=1e-5)
    assert answers([]) == []


def test_any_iterable_of_samples_serves_and_an_impossible_batch_is_refused(folders):
    answers = AnswerChoicePipeline(folders["q2a"])
    assert len(answers(each for each in [sample(), sample()])) == 2
    for size in (0, -1, "3", True, 2.0):
        with pytest.raises(ConfigError, match=f"batch_size is {size!r}; a whole number"):
            answers.choose([sample()] * 3, batch_size=size)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objects": (Box(90, 0, 5, 5, "dog"),) * 2}, "one: object 0 begins at 90, 0, outside"),
        ({"objects": (Box(1, 1, 5, 5, "dog"), Box(-9, 0, 5, 5, "dog"))}, "one: object 1 ends at -4, 5, outside"),
        ({"objects": (Box(math.nan, 0, 5, 5, "dog"),) * 2}, "finite numbers"),
        ({"objects": (Box(0, 0, 0, 5, "dog"),) * 2}, "the size 0 x 5"),
        ({"objects": (Box(0, 0, 5, 5, " "),) * 2}, "object 0 is named by a text, but its label is blank"),
        ({"answer_choices": ()}, "one: there are no candidates"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(folders, changes, words):
    with pytest.raises(SampleError, match=words):
        AnswerChoicePipeline(folders["q2a"])(sample(**changes))


def test_an_object_may_reach_over_the_edge_and_needs_a_label_only_for_a_text(folders):
    objects = (Box(-5, -5, 300, 300, "person"), Box(0, 0, 9, 9, "dog"), Box(0, 0, 9, 9))
    assert len(AnswerChoicePipeline(folders["q2a"])(sample(objects=objects))) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answer_choices": ("abc", "def")}, "one: answer_choices has the text 'abc' in place of its words"),
        ({"question": "why?"}, "one: question has the text 'why\\?'"),
        ({"rationale_choices": "why?"}, "rationale_choices has the text"),
        ({"question": (0, "x")}, "question has 0, which is neither a word nor a tuple"),
    ],
)
def test_a_text_that_would_be_read_letter_by_letter_is_refused(changes, words):
    with pytest.raises(SampleError, match=words):
        sample(**changes)


def test_reasons_are_found_for_the_answers_chosen(folders):
    reasons = ReasonChoicePipeline(folders["qa2r"])
    samples = [sample(), sample(key="two")]
    found = reasons(samples, answers=[0, 2])
    assert found[0].scores == pytest.approx(reasons(sample(answer_label=0))[0].scores, abs=1e-5)
    assert found[1].scores == pytest.approx(reasons(sample(answer_label=2))[0].scores, abs=1e-5)
    with pytest.raises(DataError, match="1 answers for 2 samples"):
        reasons(samples, answers=[0])
    with pytest.raises(DataError, match="answers is 2; give a list"):
        reasons(sample(), answers=2)
    with pytest.raises(DataError, match="one: there is no answer 4 of 4"):
        reasons(sample(), answers=[4])
    with pytest.raises(SampleError, match="one: the right answer is not known"):
        reasons(sample())


def test_a_choice_is_made_as_in_the_runs_evaluation(folders, tmp_path):
    """Texts of its length, boxes as it mapped them; a model of no run reads texts of 80 tokens at most."""
    shutil.copytree(folders["q2a"], tmp_path / "model")
    settings = {"task": {"name": "vcr-q2a", "released_boxes": True}, "text": {"max_length": 90, "clean": False}}
    (tmp_path / "config.yaml").write_text(dump_yaml(settings))
    long = sample(question=("why", *["is"] * 84, (0,)), answer_choices=(((1,),), ("no",), ("yes",), ((0,),)))
    text = TextConfig(max_length=90, clean=False)
    found = AnswerChoicePipeline(tmp_path)(long)[0].logits
    told = AnswerChoicePipeline(folders["q2a"], text=text, released_boxes=True)(long)[0].logits
    assert found == pytest.approx(told, abs=1e-6)
    for options in ({"released_boxes": False}, {"text": text.model_copy(update={"max_length": 80})}):
        assert AnswerChoicePipeline(tmp_path, **options)(long)[0].logits != pytest.approx(found, abs=1e-4)
    assert AnswerChoicePipeline(folders["q2a"]).task.options.text.max_length == 80


def test_a_model_without_object_types_is_not_asked_about_objects(folders, tmp_path):
    with pytest.raises(ConfigError, match="2 token types"):
        AnswerChoicePipeline(save_released(tmp_path / "plain", VLEForVCRQ2A))
