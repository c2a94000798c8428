"""The pipelines of VLE's release: scripts written for it run after changing the import, and give what they should."""

import json
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

import evle
from evle.errors import ConfigError, DataError, SampleError
from evle.models.vle import (
    VLEForITM,
    VLEForPBC,
    VLEForVCRQ2A,
    VLEForVCRQA2R,
    VLEForVQA,
    VLEModel,
    VLEProcessor,
)
from evle.pipelines import (
    VLEForITMPipeline,
    VLEForPBCPipeline,
    VLEForVCRQ2APipeline,
    VLEForVCRQA2RPipeline,
    VLEForVQAPipeline,
)
from evle.transforms.heatmap import DIMMEST
from vle_folders import ANSWERS, META, plain_image, save_released, write_vcr


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A working folder in which the released names are folders, as a script sees them."""
    folder = tmp_path_factory.mktemp("world")
    labels = {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: i for i, name in enumerate(ANSWERS)}}
    for name, model_class, fields in (
        ("vle-large", VLEModel, {}),
        ("vle-base-for-vqa", VLEForVQA, labels),
        ("vle-base-itm", VLEForITM, {}),
        ("vle-base-pbc", VLEForPBC, {}),
        ("vle-large-for-vcr-q2a", VLEForVCRQ2A, {"num_token_types": 83}),
        ("vle-large-for-vcr-qa2r", VLEForVCRQA2R, {"num_token_types": 83}),
    ):
        save_released(folder / "hfl" / name, model_class, **fields)
    (folder / "pics").mkdir()
    for name in ("dogs", "door"):
        plain_image().save(folder / "pics" / f"{name}.png")
    write_vcr(folder / "pics/vcr_sample_images")
    return folder


def script(text: str, **names) -> dict:
    """Run a script as it was written for the release, but for its first import."""
    names = dict(names)
    exec(textwrap.dedent(text).replace("models.VLE", "evle"), names)
    return names


def build(world, name, model_class, pipeline_class, **options):
    folder = world / "hfl" / name
    return pipeline_class(
        model=model_class.from_pretrained(folder),
        device="cpu",
        vle_processor=VLEProcessor.from_pretrained(folder),
        **options,
    )


@pytest.fixture(scope="module")
def vqa(world):
    return build(world, "vle-base-for-vqa", VLEForVQA, VLEForVQAPipeline)


@pytest.fixture(scope="module")
def pbc(world):
    return build(world, "vle-base-pbc", VLEForPBC, VLEForPBCPipeline)


# --- scripts as people have them


def test_a_released_script_runs_the_bare_model(world, monkeypatch):
    monkeypatch.chdir(world)
    done = script("""
        from models.VLE import VLEModel, VLEProcessor
        from PIL import Image

        model_name = "hfl/vle-large"
        images = [Image.open("pics/dogs.png")]
        text = ["There are dogs on the grass."]
        model = VLEModel.from_pretrained(model_name)
        vle_processor = VLEProcessor.from_pretrained(model_name)
        multimodal_inputs = vle_processor(text=text, images=images, return_tensors="pt", padding=True)
        vle_output = model(**multimodal_inputs)
    """)
    assert done["vle_output"].pooler_output.shape == (1, 32)


def test_a_released_script_answers_questions(world, monkeypatch):
    monkeypatch.chdir(world)
    done = script("""
        from models.VLE import VLEForVQA, VLEProcessor, VLEForVQAPipeline
        from PIL import Image

        model_name = "hfl/vle-base-for-vqa"
        text = "What is the color of the floor?"
        image = Image.open("pics/door.png")
        model = VLEForVQA.from_pretrained(model_name)
        vle_processor = VLEProcessor.from_pretrained(model_name)
        vqa_pipeline = VLEForVQAPipeline(model=model, device='cpu', vle_processor=vle_processor)
        vqa_answers = vqa_pipeline(image=image, question=text, top_k=5)
    """)
    answers = done["vqa_answers"]
    assert {row["answer"] for row in answers} == set(ANSWERS)  # top_k=5 of the 4 there are
    assert [row["score"] for row in answers] == sorted((row["score"] for row in answers), reverse=True)


def test_a_released_script_matches(world, monkeypatch):
    monkeypatch.chdir(world)
    done = script("""
        from models.VLE import VLEForITM, VLEProcessor, VLEForITMPipeline
        from PIL import Image

        model_dir = 'hfl/vle-base-itm'
        itm_text = ["a photo of a cat.", "a photo of dogs."]
        itm_images = Image.open("pics/dogs.png")
        model = VLEForITM.from_pretrained(model_dir)
        vle_processor = VLEProcessor.from_pretrained(model_dir)
        itm_pipeline = VLEForITMPipeline(model=model, device='cpu', vle_processor=vle_processor)
        itm_pred = itm_pipeline([{"image": itm_images, "text": itm_text[0]},
                                 {"image": itm_images, "text": itm_text[1]}])
    """)
    first, second = done["itm_pred"]
    assert first != second
    for found in (first, second):
        assert sum(found["score"]) == pytest.approx(1)
        assert found["match"] == ("True" if found["score"][1] > 0.5 else "False")


def test_a_released_script_paints_patches(world, monkeypatch):
    monkeypatch.chdir(world)
    script("""
        from models.VLE import VLEForPBC, VLEProcessor, VLEForPBCPipeline
        from PIL import Image

        model_dir = 'hfl/vle-base-pbc'
        pbc_text = "pink tongues"
        pbc_image = Image.open("pics/dogs.png")
        model = VLEForPBC.from_pretrained(model_dir)
        vle_processor = VLEProcessor.from_pretrained(model_dir)
        pbc_pipeline = VLEForPBCPipeline(model=model, device='cpu', vle_processor=vle_processor)
        pbc_pred = pbc_pipeline(image=pbc_image, text=pbc_text)
        pbc_pred['image'].save('pics/pink_tongues.png')
    """)
    assert Image.open(world / "pics/pink_tongues.png").size == (90, 60)


@pytest.mark.parametrize("half", ["q2a", "qa2r"])
def test_a_released_script_reasons(world, monkeypatch, half):
    monkeypatch.chdir(world)
    name = {"q2a": "Q2A", "qa2r": "QA2R"}[half]
    done = script(
        f"""
        from models.VLE import VLEForVCR{name}, VLEProcessor, VLEForVCR{name}Pipeline

        model_name = 'hfl/vle-large-for-vcr-{half}'
        model = VLEForVCR{name}.from_pretrained(model_name)
        vle_processor = VLEProcessor.from_pretrained(model_name)
        pipeline = VLEForVCR{name}Pipeline(model=model, device='cpu', vle_processor=vle_processor)
        vcr_image_root = 'pics/vcr_sample_images'
        vcr_outputs = pipeline(vcr_image_root=vcr_image_root, meta_inputs=meta_data)
        pred = vcr_outputs[0]["pred"]
        said = f'predict: {{pred[0] + 1}}'
        """,
        meta_data=META,
    )
    assert done["said"] in {f"predict: {place}" for place in (1, 2, 3, 4)}
    assert sum(done["vcr_outputs"][0]["score"]) == pytest.approx(1)


def test_every_released_name_is_on_the_face():
    tasks = ("VQA", "ITM", "PBC", "VCRQ2A", "VCRQA2R")
    for name in ("VLEModel", "VLEConfig", "VLEProcessor", "VLEForMLM", *(f"VLEFor{task}" for task in tasks)):
        assert name in evle.__all__
    assert {f"VLEFor{task}Pipeline" for task in tasks} <= set(evle.__all__)


# --- what they give


def test_scores_are_the_heads_own_kind_and_the_released_kind_on_request(world, vqa):
    inputs = vqa.vle_processor(text="What is it?", images=plain_image(), return_tensors="pt")
    with torch.no_grad():
        logits = vqa.model(**inputs).logits[0]
    ours = vqa(plain_image(), "What is it?", top_k=4)
    theirs = build(world, "vle-base-for-vqa", VLEForVQA, VLEForVQAPipeline, released_scores=True)
    released = theirs(plain_image(), "What is it?", top_k=4)
    assert [row["answer"] for row in ours] == [row["answer"] for row in released]
    assert [row["score"] for row in ours] == pytest.approx(sorted(logits.sigmoid().tolist(), reverse=True), abs=1e-4)
    expected = sorted(logits.softmax(-1).tolist(), reverse=True)
    assert [row["score"] for row in released] == pytest.approx(expected, abs=1e-4)
    assert sum(row["score"] for row in released) == pytest.approx(1)


def test_patch_scores_are_those_of_the_models_own_call(pbc):
    inputs = pbc.vle_processor(text="Pink tongues!", images=plain_image(), return_tensors="pt")
    with torch.no_grad():
        expected = pbc.model(**inputs).logits[0].softmax(-1)
    found = pbc(image=plain_image(), text="Pink tongues!")
    torch.testing.assert_close(torch.tensor(found["score"]), expected, atol=1e-4, rtol=0)


def test_what_the_model_does_not_see_is_painted_dark(pbc):
    painted = np.asarray(pbc(image=plain_image(), text="a photo")["image"], dtype=float)
    original = np.asarray(plain_image(), dtype=float)
    outside = np.r_[0:15, 75:90]  # 90 x 60: the model sees the middle 60 columns
    np.testing.assert_allclose(painted[:, outside], original[:, outside] * DIMMEST, atol=1)


def test_pairs_come_one_by_one_in_lists_and_as_streams(vqa):
    pair = {"image": plain_image(), "question": "What is it?"}
    one = vqa(pair)
    assert one == vqa(image=plain_image(), question="What is it?")
    assert len(one) == 1  # top_k is 1, as released
    near = [{**row, "score": pytest.approx(row["score"], abs=1e-5)} for row in one]  # a batch may round otherwise
    assert vqa([pair, pair]) == [near, near]
    stream = vqa(dict(pair) for _ in range(20))
    assert next(stream) == near
    assert len(list(stream)) == 19
    assert vqa([]) == []


class Pairs(torch.utils.data.Dataset):
    """A map-style dataset, which ends by its length and not by IndexError."""

    def __len__(self):
        return 3

    def __getitem__(self, place):
        return {"image": plain_image(60 + 10 * (place % 3), 60), "question": "What is it?"}


def test_a_torch_dataset_of_pairs_is_read_by_its_length(vqa):
    assert list(vqa(Pairs())) == vqa([Pairs()[place] for place in range(3)])


def test_a_call_has_its_own_batch_size(world, vqa, q2a, monkeypatch):
    rows = []
    for model in (vqa.model, q2a.model):
        forward = model.forward
        monkeypatch.setattr(
            model, "forward", lambda forward=forward, **batch: rows.append(len(batch["input_ids"])) or forward(**batch)
        )
    assert len(list(vqa(Pairs(), batch_size=2))) == len(vqa([Pairs()[0]] * 9, batch_size=9)) - 6
    assert rows == [2, 1, 9]
    q2a(world / "pics/vcr_sample_images", [META] * 3, batch_size=2)
    assert rows[3:] == [2, 1]
    with pytest.raises(ConfigError, match="batch_size is 0; a whole number of at least 1"):
        vqa(Pairs(), batch_size=0)
    assert vqa(Pairs()[0], top_k=None) == vqa(Pairs()[0])  # as released


def test_batches_do_not_change_the_answers(world, vqa):
    texts = ["What?", "What is the color of the floor of this house?", "two dogs"]
    pairs = [{"image": plain_image(60 + 10 * i, 60), "question": text} for i, text in enumerate(texts)]
    alone = build(world, "vle-base-for-vqa", VLEForVQA, VLEForVQAPipeline, batch_size=1)
    for together, each in zip(vqa(pairs, top_k=4), alone(pairs, top_k=4), strict=True):
        assert {row["answer"]: pytest.approx(row["score"], abs=1e-5) for row in each} == {
            row["answer"]: row["score"] for row in together
        }


def test_a_path_will_do_for_a_image(world, vqa):
    path = world / "pics/dogs.png"
    assert vqa(image=str(path), question="a?") == vqa(image=path, question="a?") == vqa(Image.open(path), "a?")


def test_devices_are_named_as_in_transformers(world):
    pipeline = build(world, "vle-base-itm", VLEForITM, VLEForITMPipeline)
    again = VLEForITMPipeline(pipeline.vle_processor, pipeline.model, device=-1)
    assert again(plain_image(), "a photo of dogs.") == pipeline(plain_image(), "a photo of dogs.")


def test_what_is_no_pair_is_refused(world, vqa):
    with pytest.raises(DataError, match="takes image= and question="):
        vqa(plain_image())
    with pytest.raises(DataError, match=r'a pair needs "image" and "question"; given: \[\'image\', \'text\'\]'):
        vqa([{"image": plain_image(), "text": "a?"}])
    with pytest.raises(ConfigError, match="VLEForVQAPipeline needs a VLEForVQA, not a VLEForITM"):
        build(world, "vle-base-itm", VLEForITM, VLEForVQAPipeline)
    with pytest.raises(SampleError, match=r"none\.png"):
        vqa("none.png", "a?")


# --- VCR


@pytest.fixture(scope="module")
def q2a(world):
    return build(world, "vle-large-for-vcr-q2a", VLEForVCRQ2A, VLEForVCRQ2APipeline)


@pytest.fixture(scope="module")
def qa2r(world):
    return build(world, "vle-large-for-vcr-qa2r", VLEForVCRQA2R, VLEForVCRQA2RPipeline)


def test_labels_are_not_needed_and_change_nothing(world, q2a):
    root = world / "pics/vcr_sample_images"
    bare = {name: value for name, value in META.items() if name not in ("answer_label", "rationale_label", "annot_id")}
    assert q2a(root, bare) == q2a(root, META)


def test_a_prediction_does_not_depend_on_what_was_asked_before_or_beside_it(world, q2a):
    root = world / "pics/vcr_sample_images"
    other = {**META, "question": ["Why", "is", [1, 2], "here", "in", "this", "house", "and", "not", "away", "?"]}
    first = q2a(root, META)[0]
    q2a(root, other)
    many = q2a(root, [other, META, META])
    for row in many[1:]:
        assert row[0]["pred"] == first["pred"]
        assert row[0]["score"] == pytest.approx(first["score"], abs=1e-5)
    assert many[0][0]["score"] != pytest.approx(first["score"], abs=1e-4)


def test_reasons_depend_on_the_right_answer_which_must_be_known(world, qa2r):
    root = world / "pics/vcr_sample_images"
    scores = [qa2r(root, {**META, "answer_label": place})[0]["score"] for place in range(4)]
    assert scores[0] != pytest.approx(scores[1], abs=1e-6)
    with pytest.raises(SampleError, match="right answer is not known"):
        qa2r(root, {**META, "answer_label": None})


def test_released_scores_are_logits_and_released_boxes_lie_elsewhere(world, q2a):
    root = world / "pics/vcr_sample_images"
    logits = VLEForVCRQ2APipeline(q2a.vle_processor, q2a.model, released_scores=True)(root, META)[0]["score"]
    assert torch.tensor(logits).softmax(-1).tolist() == pytest.approx(q2a(root, META)[0]["score"], abs=1e-5)
    moved = VLEForVCRQ2APipeline(q2a.vle_processor, q2a.model, released_boxes=True)
    assert moved(root, META)[0]["score"] != pytest.approx(q2a(root, META)[0]["score"], abs=1e-6)


def test_what_vcr_lacks_is_named(world, q2a, tmp_path):
    root = world / "pics/vcr_sample_images"
    with pytest.raises(DataError, match="val-1: no objects, question; use a line of VCR"):
        q2a(root, {name: value for name, value in META.items() if name not in ("objects", "question")})
    with pytest.raises(DataError, match=r"film@0\.json: no such metadata; .* or set images to the folder"):
        q2a(tmp_path, META)
    with pytest.raises(DataError, match=r"1 objects, but .* has \d boxes"):
        q2a(root, {**META, "objects": ["person"]})
    with pytest.raises(DataError, match="takes vcr_image_root= and meta_inputs="):
        q2a(None, META)
    (tmp_path / "lsmdc_film").mkdir()
    (tmp_path / META["metadata_fn"]).write_text(json.dumps({"boxes": "none"}))
    with pytest.raises(DataError, match=r"no metadata with boxes \[x1, y1, x2, y2, score\]"):
        q2a(tmp_path, META)
