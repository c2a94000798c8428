"""VQAv2, NLVR2, VCR and X-VLM's lists are read from their official layouts; whatever is wrong is named in one line."""

import json
import os
import pickle
import shutil
from collections import Counter

import pytest

import corpora
from evle.data.corpora.nlvr2 import nlvr2, sentence_of
from evle.data.corpora.vcr import vcr, vcr_sample
from evle.data.corpora.vqav2 import vqav2
from evle.data.corpora.xvlm import xvlm
from evle.data.formats.json_lines import JsonLines
from evle.data.images import open_image
from evle.data.samples import Box
from evle.data.sources import read_source
from evle.errors import ConfigError, DataError, SampleError
from evle.inspection.sample_check import check_samples
from reasoning_corpora import IMAGES, colour_of, nlvr2_records, ten_answers
from reasoning_corpora import nlvr2 as write_nlvr2
from reasoning_corpora import vcr as write_vcr
from reasoning_corpora import vqav2 as write_vqav2
from reasoning_corpora import xvlm_pairs as write_pairs
from reasoning_corpora import xvlm_questions as write_questions

QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_{}_annotations.json"


@pytest.fixture
def coco(tmp_path):
    return write_vqav2(tmp_path / "vqa")


@pytest.fixture
def pairs(tmp_path):
    return write_nlvr2(tmp_path / "nlvr2")


@pytest.fixture
def scenes(tmp_path):
    return write_vcr(tmp_path / "vcr")


def change(file, edit):
    """The JSON of `file`, changed by `edit`, written back."""
    tree = json.loads(file.read_text())
    edit(tree)
    file.write_text(json.dumps(tree))


# --- VQAv2


def test_vqav2_questions_meet_their_annotations_whatever_the_order(coco):
    samples = vqav2(coco, split="val")
    assert len(samples) == 18
    first = samples[0]
    assert (first.key, first.question) == ("101000", "What color is it?")
    assert first.image == str(coco / "val2014" / "COCO_val2014_000000000101.jpg")
    assert (first.answer_type, first.question_type) == ("other", "what color is")
    assert open_image(first.image).size == (20, 20)
    assert pickle.loads(pickle.dumps(samples))[5] == samples[5]
    assert samples.describe()["images"] == 6


def test_the_main_answer_stands_first_and_none_is_lost(coco):
    for sample, number in zip(vqav2(coco, split="train")[::3], IMAGES["train2014"], strict=True):
        assert sample.answers[0] == colour_of(number)
        assert Counter(sample.answers) == Counter(each["answer"] for each in ten_answers(colour_of(number)))


def test_vqav2_splits_hold_what_their_names_say(coco):
    keys = {name: [sample.key for sample in vqav2(coco, split=name)] for name in ("train", "val", "trainval")}
    assert keys["trainval"] == keys["train"] + keys["val"]
    held = vqav2(coco, split="val-held-out", held_out=2)
    rest = vqav2(coco, split="trainval-minus-held-out", held_out=2)
    assert {sample.image[-7:] for sample in held} == {"105.jpg", "106.jpg"}
    assert sorted([sample.key for sample in held] + [sample.key for sample in rest]) == sorted(keys["trainval"])
    test, dev = vqav2(coco, split="test"), vqav2(coco, split="test-dev")
    assert (len(test), len(dev)) == (12, 3)
    assert test[0].answers == () == dev[0].answers
    assert dev[0].image == test[0].image == str(coco / "test2015" / "COCO_test2015_000000000301.jpg")
    prints = {vqav2(coco, split=name, held_out=3).fingerprint for name in (*keys, "test", "val-held-out")}
    assert len(prints) == 5


def test_vqav2_files_may_lie_in_folders_and_images_elsewhere_or_all_together(coco, tmp_path):
    whole = vqav2(coco, split="val")
    (tmp_path / "json" / "questions").mkdir(parents=True)
    (tmp_path / "json" / "annotations").mkdir()
    shutil.copy(coco / QUESTIONS.format("val2014"), tmp_path / "json" / "questions")
    shutil.copy(coco / ANNOTATIONS.format("val2014"), tmp_path / "json" / "annotations")
    elsewhere = vqav2(tmp_path / "json", split="val", images=coco)
    assert elsewhere[:] == whole[:]
    flat = vqav2(tmp_path / "json", split="val", images=coco / "val2014")
    assert flat[:] == whole[:]


def test_questions_without_an_annotation_are_left_out_and_named(coco):
    change(coco / ANNOTATIONS.format("val2014"), lambda tree: tree["annotations"].pop())
    samples = vqav2(coco, split="val")
    assert len(samples) == 17
    assert samples.skipped[0].endswith("annotations.json: question 101000 has no annotation")
    assert samples.describe()["rows left out"] == 1


def test_annotations_without_a_question_are_left_out_and_named(coco):
    change(coco / QUESTIONS.format("val2014"), lambda tree: tree["questions"].pop())
    samples = vqav2(coco, split="val")
    assert len(samples) == 17
    file = ANNOTATIONS.format("val2014")
    assert samples.skipped[0].startswith(f"{coco / file}: question ")
    assert samples.skipped[0].endswith(f" is not in {QUESTIONS.format('val2014')}")
    assert samples.describe()["rows left out"] == 1


def test_of_many_rows_left_out_the_first_are_named_and_all_are_counted(coco, scenes, monkeypatch):
    monkeypatch.setattr("evle.data.corpora.official.NAMED", 1)
    change(coco / ANNOTATIONS.format("val2014"), lambda tree: tree["annotations"].__delitem__(slice(3)))
    questions = vqav2(coco, split="val")
    assert questions.skipped[1].endswith("annotations.json: 2 more questions of which each has no annotation")
    for place in range(3):
        (scenes / "vcr1images" / "lsmdc_val" / f"val_{place}@{place}.json").unlink()
    choices = vcr(scenes, split="val")
    assert choices.skipped[1].endswith("val.jsonl: 2 more questions without metadata")
    for samples in (questions, choices):
        assert samples.describe()["rows left out"] == 3
        assert "left out by the source: 3" in check_samples(samples).lines()


def test_what_is_wrong_with_vqav2_is_said_in_one_line(coco, tmp_path):
    with pytest.raises(ConfigError, match=r"vqav2 has no split 'test-dve'; did you mean 'test-dev'\?"):
        vqav2(coco, split="test-dve")
    with pytest.raises(ConfigError, match="source 'vqav2' holds vqa, not 'nlvr2'"):
        vqav2(coco, "nlvr2")
    with pytest.raises(ConfigError, match="held_out=6 must be above 0 and below the 6 images of"):
        vqav2(coco, split="val-held-out", held_out=6)
    with pytest.raises(
        DataError, match=r"nowhere: no such file or folder; set path to the folder of VQAv2's questions"
    ):
        vqav2(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no v2_OpenEnded_mscoco_val2014_questions.json"):
        vqav2(tmp_path / "empty", split="val")
    questions, annotations = coco / QUESTIONS.format("val2014"), coco / ANNOTATIONS.format("val2014")
    good = {file: file.read_text() for file in (questions, annotations)}

    def wrong(file, text, message):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            vqav2(coco, split="val")
        file.write_text(good[file])

    wrong(questions, good[questions][:-30], r"val2014_questions.json: cut short in 'questions', element 17, at byte")
    wrong(questions, good[annotations], r"no list 'questions' in it: it holds 'info', .*; is it the right file\?")
    wrong(questions, good[questions].replace('"question":', '"qestion":'), "question 0: no field 'question'; did you m")
    wrong(questions, good[questions].replace("101001", "101000"), "question_id '101000' appears 2 times")
    wrong(annotations, good[annotations].replace("101001", "101000"), "question_id '101000' appears 2 times")
    wrong(
        annotations,
        good[annotations].replace('"image_id": 101', '"image_id": 99'),
        "question 101000 belongs to another im",
    )
    wrong(
        annotations, good[annotations].replace('"question_id": 10', '"question_id": 77'), "annotates none of the questi"
    )
    wrong(
        annotations,
        good[annotations].replace('"question_id": 101000', '"question_id": "x"'),
        "question_id must be a whole n",
    )
    shutil.rmtree(coco / "val2014")
    with pytest.raises(DataError, match=r"val2014: no such folder; put COCO's images val2014 there, or set images="):
        vqav2(coco, split="val")
    (coco / "val2014").mkdir()
    with pytest.raises(DataError, match=r"nor any other of 16 images that .* names; put the images there"):
        vqav2(coco, split="val")


# --- NLVR2


def test_nlvr2_sentences_meet_their_pairs(pairs):
    samples = nlvr2(pairs)
    first = samples[2]
    assert (first.key, first.label, first.set_id) == ("train-1-0-0", True, "train-1-0")
    assert first.images[1] == str(pairs / "images" / "train" / "1" / "train-1-0-img1.png")
    assert samples[3].set_id == first.set_id
    dev = nlvr2(pairs, split="dev")
    assert dev[0].images[0] == str(pairs / "images" / "dev" / "dev-0-0-img0.png")
    assert (
        len({sample.set_id for sample in nlvr2(pairs / "data" / "test1.json", split="test1", images=pairs / "images")})
        == 4
    )
    assert all(open_image(image).size == (20, 20) for sample in dev for image in sample.images)


def test_the_pairs_of_a_sentence_differ_in_the_third_part_alone():
    """As the official evaluator groups them: it blanks the third part of the identifier."""
    names = ["dev-850-0-0", "dev-850-1-0", "dev-850-0-1", "dev-851-0-0"]
    assert [sentence_of(name) for name in names] == ["dev-850-0", "dev-850-0", "dev-850-1", "dev-851-0"]


def test_labels_may_be_absent(pairs):
    records = nlvr2_records("test1")
    for record in records:
        del record["label"]
    (pairs / "data" / "test1.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert {sample.label for sample in nlvr2(pairs, split="test1")} == {None}


def test_nlvr2_images_may_lie_beside_the_sentences(pairs):
    before = nlvr2(pairs, split="dev")[0].images[0]
    (pairs / "images" / "dev").rename(pairs / "dev")
    after = nlvr2(pairs, split="dev")[0].images[0]
    assert after == before.replace("images/dev", "dev")
    assert os.path.exists(after)


def test_what_is_wrong_with_nlvr2_is_said_in_one_line(pairs):
    with pytest.raises(ConfigError, match="nlvr2 has no split 'test'; did you mean 'test1'"):
        nlvr2(pairs, split="test")
    with pytest.raises(ConfigError, match="source 'nlvr2' holds nlvr2, not 'vqa'"):
        nlvr2(pairs, "vqa")
    file = pairs / "data" / "dev.json"
    good = file.read_text()

    def wrong(text, message):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            nlvr2(pairs, split="dev")
        file.write_text(good)

    wrong(good[:-20], r"dev.json:8: cut short \(.*\); fetch or unpack the file again")
    wrong(good + good.splitlines()[0], "identifier 'dev-0-0-0' appears 2 times")
    wrong(good.replace("dev-1-1-0", "train-1-1-0"), r"dev.json:4: 'train-1-1-0' does not belong to split 'dev'")
    wrong(
        good.replace("dev-1-1-0", "dev-1-1"), r"dev.json:4: identifier 'dev-1-1' is not of the form dev-SET-PAIR-SENTE"
    )
    wrong(good.replace('"False"', '"perhaps"', 1), r"dev.json:2: label 'perhaps' is neither True nor False")
    wrong(good.replace('"sentence"', '"text"', 1), r"dev.json:1: no field 'sentence'")
    wrong(good.replace("dev-0-0-0", "dev-0-/../../x-0"), r"dev.json:1: the image 'dev-0-/../../x-0' is outside of dev")
    wrong("[1]\n", r"dev.json:1: each line must be an object \{...\}, not '\[1\]'")
    wrong("", "no sentence; download the file again")
    shutil.rmtree(pairs / "images" / "dev")
    with pytest.raises(DataError, match=r"images/dev: no such folder; put NLVR2's images of dev there, or set images="):
        nlvr2(pairs, split="dev")
    (pairs / "images" / "dev").mkdir()
    with pytest.raises(DataError, match=r"nor any other of 16 images that .*dev.json names"):
        nlvr2(pairs, split="dev")


# --- VCR


def test_vcr_questions_meet_their_boxes(scenes):
    samples = vcr(scenes)
    first = samples[1]
    assert first.key == "train-1"
    assert first.objects[:2] == (Box(1, 2, 8, 10, "person"), Box(3, 0, 17, 20, "person"))
    assert first.objects[2].label == "dog"
    assert first.question == ("What", "is", (0, 1), "looking", "at", "?")
    assert first.answer_choices[0] == ((2,), "is", "green", ".")
    assert len(first.rationale_choices) == 4
    assert (first.answer_label, first.rationale_label) == (0, 0)
    assert open_image(first.image).size == (20, 20)
    assert pickle.loads(pickle.dumps(samples))[7] == samples[7]


def test_vcr_test_has_no_labels(scenes):
    samples = vcr(scenes, split="test")
    assert {(sample.answer_label, sample.rationale_label) for sample in samples} == {(None, None)}


def test_questions_without_metadata_are_left_out_and_named(scenes):
    (scenes / "vcr1images" / "lsmdc_val" / "val_2@2.json").unlink()
    samples = vcr(scenes, split="val")
    assert [sample.key for sample in samples] == ["val-0", "val-1", "val-3"]
    assert "val-2: " in samples.skipped[0]
    assert samples.skipped[0].endswith("val_2@2.json: no such metadata; unpack VCR's images with it")


def test_what_is_wrong_with_vcr_is_said_in_one_line(scenes):
    with pytest.raises(ConfigError, match="vcr has no split 'dev'; choose one of: test, train, val"):
        vcr(scenes, split="dev")
    file = scenes / "val.jsonl"
    good = file.read_text()

    def wrong(text, message):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            vcr(scenes, split="val")
        file.write_text(good)

    wrong(good[:-9], r"val.jsonl:4: cut short")
    wrong(good.replace('"answer_label": 0, ', "", 1), r"val.jsonl:1: no field 'answer_label'")
    wrong(good.replace("val-1", "val-0"), "annot_id 'val-0' appears 2 times")
    for name in ("../x/val_0@0", "/etc/val_0@0"):
        for suffix in ("jpg", "json"):
            changed = good.replace(f"lsmdc_val/val_0@0.{suffix}", f"{name}.{suffix}")
            wrong(changed, rf"val.jsonl:1: the image '{name}.{suffix}' is outside of .*vcr1images; download")
    metadata = scenes / "vcr1images" / "lsmdc_val" / "val_0@0.json"
    samples = vcr(scenes, split="val")
    metadata.write_text('{"boxes": [[1, 2]]}')
    with pytest.raises(SampleError, match=r"val-0: .*val_0@0.json: no metadata with boxes \[x1, y1, x2, y2, score\]"):
        samples[0]
    metadata.write_text('{"boxes": [[1, 2, 3, 4, 1]]}')
    with pytest.raises(SampleError, match=r"val-0: 3 objects, but .*val_0@0.json has 1 boxes"):
        samples[0]
    file.write_text(good.replace("[0, 1]", "[0, 3]", 1))
    (scenes / "vcr1images" / "lsmdc_val" / "val_0@0.json").write_text(metadata.with_name("val_1@1.json").read_text())
    with pytest.raises(SampleError, match="val-0: a text names object 3 of 3; use the official file"):
        vcr(scenes, split="val")[0]
    file.write_text(good.replace('"objects": ["person", "person", "dog"]', '"objects": null', 1))
    with pytest.raises(SampleError, match="val-0: its objects must be a list, not 'None'; use the official file"):
        vcr(scenes, split="val")[0]
    file.write_text(good.replace('"answer_label": 0', '"answer_label": 4', 1))
    with pytest.raises(SampleError, match="val-0: answer_label 4 is not one of 0 to 3"):
        vcr(scenes, split="val")[0]
    file.write_text(good)
    shutil.rmtree(scenes / "vcr1images")
    with pytest.raises(DataError, match=r"vcr1images: no such folder; put VCR's images and their metadata there"):
        vcr(scenes, split="val")
    (scenes / "vcr1images").mkdir()
    with pytest.raises(DataError, match=r"val-0: .*val_0@0.json: no such metadata; unpack VCR's images with it"):
        vcr(scenes, split="val")


@pytest.mark.parametrize("name", ["answer_label", "rationale_label"])
@pytest.mark.parametrize(("number", "labels"), [(4, "1, 2, 3, 4"), (44, "1, 2, 3")])
def test_labels_that_count_the_choices_from_1_are_refused(scenes, name, number, labels):
    file = scenes / "train.jsonl"
    record = json.loads(file.read_text().splitlines()[0])
    most = int(labels[-1])
    lines = [json.dumps(record | {"annot_id": f"t-{index}", name: index % most + 1}) for index in range(number)]
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"train.jsonl: no {name} is 0 \(there are {labels}\).* subtract 1"):
        vcr(scenes)
    few = [json.dumps(record | {"annot_id": f"t-{index}", name: index % 3 + 1}) for index in range(6)]
    file.write_text("\n".join(few))  # so few may be from 1 to 3 by chance
    assert getattr(vcr(scenes)[5], name) == 3


def test_a_file_that_changed_since_it_was_opened_is_noticed(scenes):
    samples = vcr(scenes, split="val")
    (scenes / "val.jsonl").write_text("\n" * 50 + (scenes / "val.jsonl").read_text())
    with pytest.raises(DataError, match="changed at byte"):
        samples[3]


# --- X-VLM's lists


def test_xvlm_questions_of_coco_and_visual_genome_come_from_their_folders(tmp_path):
    folder = write_questions(tmp_path)
    files = ["vqa_train.json", "vqa_val.json", "vg_qa.json"]
    samples = xvlm(folder / "lists", "vqa", files=files, images=folder, vg_images=folder / "genome")
    assert len(samples) == 3 * 14 + 2
    assert (samples[0].key, samples[0].answers[:2]) == ("9000", ("dark", "green"))
    assert samples[-1].key == "vg-9002"
    assert samples[-1].answers == ("An image.",)
    assert samples[-1].image == str(folder / "genome" / "VG_100K" / "2.jpg")
    test = xvlm(folder / "lists", "vqa", "test", images=folder)
    assert {sample.answers for sample in test} == {()}


def test_xvlm_questions_may_have_one_answer_or_none(tmp_path):
    folder = write_questions(tmp_path)
    change(folder / "lists" / "vqa_val.json", lambda tree: [tree[0].update(answer=None), tree[1].update(answer=2)])
    samples = xvlm(folder / "lists", "vqa", "val", images=folder)
    assert [sample.answers for sample in samples[:2]] == [(), ("2",)]


def test_xvlm_pairs_know_the_pairs_of_a_sentence(tmp_path):
    folder = write_pairs(tmp_path)
    samples = xvlm(folder / "lists", "nlvr2", "dev", images=folder)
    assert [sample.label for sample in samples] == [True, False] * 4
    assert samples[0].key == "dev-0-0#0"
    assert samples[0].set_id == samples[1].set_id == "dev-0: Both are red, in set 0."
    assert len({sample.set_id for sample in samples}) == 4
    assert len({sample.key for sample in samples}) == 8


def test_what_is_wrong_with_xvlm_lists_is_said_in_one_line(tmp_path):
    folder = write_questions(tmp_path)
    lists = folder / "lists"
    with pytest.raises(
        ConfigError, match="source 'xvlm' has no samples for 'vcr'; choose one of: captions, nlvr2, vqa"
    ):
        xvlm(lists, "vcr", "train")
    with pytest.raises(ConfigError, match="pairs and exclude are for captions, not for task 'vqa'"):
        xvlm(lists, "vqa", "train", pairs=True)
    with pytest.raises(DataError, match=r"no list \*dev.json among answer_list.json, vg_qa.json.* set files="):
        xvlm(lists, "vqa", "dev")
    with pytest.raises(DataError, match=r"lists/train2014/COCO.*: no such file, nor any other of 16 images"):
        xvlm(lists, "vqa", "train")
    with pytest.raises(DataError, match=r"question_id '10000' appears 2 times \(23 other question_ids too\)"):
        xvlm(lists, "vqa", files=["vqa_train.json", "vqa_train.json"], images=folder)
    with pytest.raises(DataError, match=r"answer_list.json: entry 0: must be an object \{...\}, not 'red'"):
        xvlm(lists, "vqa", files="answer_list.json", images=folder)
    with pytest.raises(DataError, match=r"vqa_train.json: entry 0: no field 'images'; did you mean 'image'"):
        xvlm(lists, "nlvr2", "train", images=folder)
    outside = r"the image '../val2014/COCO_val2014_.*.jpg' is outside of .*train2014; correct it, or set allow_outside"
    change(lists / "vqa_val.json", lambda tree: [each.update(image="../" + each["image"]) for each in tree])
    with pytest.raises(DataError, match=outside):
        xvlm(lists, "vqa", "val", images=folder / "train2014")
    assert xvlm(lists, "vqa", "val", images=folder / "train2014", allow_outside=True)


def test_xvlm_pairs_outside_of_the_folder_are_refused(tmp_path):
    folder = write_pairs(tmp_path)
    change(folder / "lists" / "nlvr_dev.json", lambda tree: tree[0]["images"].__setitem__(1, "../x.png"))
    with pytest.raises(DataError, match=r"the image '../x.png' is outside of"):
        xvlm(folder / "lists", "nlvr2", "dev", images=folder)


def test_each_source_is_found_by_its_name(coco, pairs, scenes):
    for name, path in (("vqav2", coco), ("nlvr2", pairs), ("vcr", scenes)):
        task = "vqa" if name == "vqav2" else name
        assert read_source(name, {"path": str(path), "task": task}).describe()["source"] == name


def test_a_line_knows_its_place(scenes):
    lines = JsonLines(scenes / "val.jsonl")
    assert [(line.number, line.value["annot_id"]) for line in lines] == [(i, f"val-{i - 1}") for i in range(1, 5)]
    assert lines.fingerprint
    with pytest.raises(DataError, match=r"none.jsonl: no such file"):
        list(JsonLines(scenes / "none.jsonl"))


def test_nan_and_null_in_xvlm_lists_are_no_words(tmp_path):
    folder = write_questions(tmp_path)

    def spoil(tree):
        tree[0].update(answer=[float("nan"), None, " "])
        tree[1].update(question="NaN")
        tree[2].update(answer=[{"answer": "red"}, {"answer": 2.0}, float("nan")])

    change(folder / "lists" / "vqa_val.json", spoil)
    whole = xvlm(folder / "lists", "vqa", "train", images=folder)
    samples = xvlm(folder / "lists", "vqa", "val", images=folder)
    assert samples[0].answers == ("red", "2")
    assert [line.rpartition(": ")[2] for line in samples.skipped] == ["no answer", "no question"]
    assert samples.num_skipped == 2
    assert not whole.skipped


def test_null_questions_and_answers_of_vqav2_are_left_out_and_named(coco):
    change(
        coco / ANNOTATIONS.format("val2014"),
        lambda tree: [a.update(answer=None) for a in tree["annotations"][0]["answers"]],
    )
    change(
        coco / "v2_OpenEnded_mscoco_val2014_questions.json", lambda tree: tree["questions"][1].update(question="null")
    )
    samples = vqav2(coco, split="val")
    assert sorted(line.partition(" ")[2].split(" ", 2)[2] for line in samples.skipped) == [
        "has no answer",
        "has no text",
    ]
    assert "None" not in {word for sample in samples for word in (sample.question, *sample.answers)}


def test_true_and_false_are_yes_and_no_to_vqav2(coco):
    def edit(tree):
        tree["annotations"][0].update(multiple_choice_answer=True)
        tree["annotations"][0]["answers"][3].update(answer=True)

    change(coco / ANNOTATIONS.format("val2014"), edit)
    assert "yes" in {sample.answers[0] for sample in vqav2(coco, split="val")}
    assert "True" not in {answer for sample in vqav2(coco, split="val") for answer in sample.answers}


def test_a_null_among_the_answers_of_vqav2_is_no_answer(coco):
    change(coco / ANNOTATIONS.format("val2014"), lambda tree: tree["annotations"][0]["answers"][3].update(answer=None))
    assert sorted(len(sample.answers) for sample in vqav2(coco, split="val"))[:2] == [9, 10]


@pytest.mark.parametrize("number", [3.7, True, "x", 2**70, float("inf"), None, [1]])
def test_what_is_no_whole_number_is_refused(coco, number):
    change(
        coco / "v2_OpenEnded_mscoco_val2014_questions.json", lambda tree: tree["questions"][1].update(image_id=number)
    )
    with pytest.raises(DataError, match="image_id must be a whole number, not"):
        vqav2(coco, split="val")


def test_lines_of_nlvr2_without_a_sentence_are_left_out_and_named(pairs):
    file = pairs / "data" / "dev.json"
    lines = file.read_text().splitlines()
    record = json.loads(lines[0])
    record["sentence"] = None
    file.write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")
    samples = nlvr2(pairs, split="dev")
    assert samples.skipped == [f"{file}:1 ({record['identifier']}): no sentence"]
    assert "None" not in {sample.sentence for sample in samples}


def test_a_list_of_which_nothing_is_left_gives_the_reasons(tmp_path):
    rows = [{"question_id": 3, "question": "g", "image": "B.jpg", "answer": [None]}]
    (tmp_path / "vqa_val.json").write_text(json.dumps([*rows, {**rows[0], "question_id": 4, "question": None}]))
    words = r"entry 0 \(question_id 3\): no answer; .*entry 1 \(question_id 4\): no question; "
    with pytest.raises(DataError, match=words):
        xvlm(tmp_path, "vqa", "val")


def test_vcr_refuses_boxes_in_shares_of_the_image(tmp_path):
    root = write_vcr(tmp_path)
    record = json.loads((root / "train.jsonl").read_text().splitlines()[0])
    metadata = root / "vcr1images" / record["metadata_fn"]
    whole = json.loads(metadata.read_text())
    shares = [[0.1, 0.2, 0.5, 1.0, 0.9] for _ in whole["boxes"]]
    metadata.write_text(json.dumps(whole | {"boxes": shares}))
    with pytest.raises(SampleError, match=r"the box \[0.1, 0.2, 0.5, 1.0\] is in shares of the image, not in pixels"):
        vcr_sample(record, root / "vcr1images")


@pytest.mark.parametrize(
    ("fields", "changes", "words"),
    [
        ({"names": ["dog", "person", "person"]}, {}, "its names .* are not the record's objects"),
        ({"boxes": [[0.1, 0.2, 1.2, 1.0, 0.9]] * 3}, {}, "is in shares of the image, not in pixels"),
        ({"boxes": [[100, 200, 900, 1000, 0.9]] * 3}, {}, "leaves the image of 20 x 20 pixels"),
        ({}, {"question": ["Why", "is", 0, "here"]}, "a text holds 0, a bare number"),
        ({}, {"question": ["Why", "is", "[0]", "here"]}, r"a text holds '\[0\]', a bare number or a reference"),
    ],
    ids=["names", "shares", "thousandths", "bare", "text"],
)
def test_vcr_refuses_metadata_and_references_of_another_form(tmp_path, fields, changes, words):
    root = write_vcr(tmp_path)
    record = json.loads((root / "train.jsonl").read_text().splitlines()[0])
    metadata = root / "vcr1images" / record["metadata_fn"]
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | fields))
    with pytest.raises(SampleError, match=words):
        vcr_sample(record | changes, root / "vcr1images")


def test_vcr_refuses_images_in_another_size_boxes_without_corners_and_odd_labels(tmp_path):
    root = write_vcr(tmp_path)
    file = root / "train.jsonl"
    record = json.loads(file.read_text().splitlines()[0])
    metadata = root / "vcr1images" / record["metadata_fn"]
    whole = json.loads(metadata.read_text())
    for box in ([9, 2, 1, 12, 0.9], [float("nan"), 2, 9, 12, 0.9]):
        metadata.write_text(json.dumps(whole | {"boxes": [box, *whole["boxes"][1:]]}))
        with pytest.raises(SampleError, match="has no corners x1 <= x2, y1 <= y2"):
            vcr(root)[0]
    metadata.write_text(json.dumps(whole))
    for label, words in ((True, "answer_label True is not one of"), (4, "answer_label 4 is not one of")):
        with pytest.raises(SampleError, match=words):
            vcr_sample(record | {"answer_label": label}, root / "vcr1images")
    assert repr(vcr_sample(record | {"answer_label": 2.0}, root / "vcr1images").answer_label) == "2"
    metadata.write_text(json.dumps(whole | {"width": 1920, "height": 797}))
    with pytest.raises(DataError, match=r"has 20 x 20 pixels, and 1920 x 797 in the annotations"):
        vcr(root)


@pytest.mark.parametrize(("label", "meant"), [(1, True), ("0", False), (" TRUE ", True), (float("nan"), None)])
def test_labels_of_pairs_are_read_in_other_forms(tmp_path, label, meant):
    names = ["a.jpg", "b.jpg"]
    for name in names:
        corpora.save(tmp_path / name, "red")
    entry = {"sentence": "both are red", "images": names, "label": label}
    corpora.write_json(tmp_path / "train.json", [entry])
    assert xvlm(tmp_path, "nlvr2")[0].label is meant


def test_a_label_or_an_answer_under_another_name_is_refused(tmp_path):
    """It was passed over, as if it were not public."""
    for name in ("a.jpg", "b.jpg"):
        corpora.save(tmp_path / name, "red")
    corpora.write_json(tmp_path / "pairs.json", [{"sentence": "x", "images": ["a.jpg", "b.jpg"], "Label": "True"}])
    with pytest.raises(DataError, match=r"entry 0: no field 'label', but 'Label'; rename it to 'label'"):
        xvlm(tmp_path / "pairs.json", "nlvr2")
    question = {"question_id": 1, "question": "what?", "image": "a.jpg", "answers": ["a dog"]}
    corpora.write_json(tmp_path / "vqa.json", [question])
    with pytest.raises(DataError, match=r"entry 0: no field 'answer', but 'answers'; rename it"):
        xvlm(tmp_path / "vqa.json", "vqa")


def test_nlvr2_folders_may_be_written_as_floats(pairs):
    file = pairs / "data/train.json"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(json.dumps({**line, "directory": float(line["directory"])}) for line in lines))
    assert all(os.path.isfile(name) for sample in nlvr2(pairs) for name in sample.images)


def test_types_of_vqav2_that_are_null_are_empty(coco):
    change(
        coco / "v2_mscoco_train2014_annotations.json",
        lambda tree: [each.update(answer_type=None, question_type=None) for each in tree["annotations"]],
    )
    assert {(sample.answer_type, sample.question_type) for sample in vqav2(coco)} == {("", "")}


@pytest.mark.parametrize("name", ["img_fn", "metadata_fn"])
def test_vcr_files_without_a_name_are_refused(scenes, name):
    first, *others = (scenes / "val.jsonl").read_text().splitlines()
    (scenes / "val.jsonl").write_text("\n".join([json.dumps({**json.loads(first), name: None}), *others]))
    with pytest.raises(DataError, match=rf"val\.jsonl:1: {name} must be a file name, not 'None'"):
        vcr(scenes, split="val")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"boxes": [[1, 2, 1%s, 4]]}' % ("0" * 400)], ids=["deep", "large"])
def test_metadata_that_python_cannot_hold_costs_its_sample_alone(scenes, text):
    first = json.loads((scenes / "val.jsonl").read_text().splitlines()[0])
    (scenes / "vcr1images" / first["metadata_fn"]).write_text(text)
    with pytest.raises(SampleError, match=r"no metadata with boxes \[x1, y1, x2, y2, score\]"):
        vcr(scenes, split="val")[0]
