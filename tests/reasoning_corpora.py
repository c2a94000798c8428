"""VQAv2, NLVR2, VCR and X-VLM's lists in miniature: official files and images, as their archives lay them out."""

import json
from pathlib import Path
from typing import Any

from corpora import colour_of, save, write_json
from micro import COLOURS, THINGS

IMAGES = {"train2014": range(9, 17), "val2014": range(101, 107), "test2015": range(301, 305)}
"""COCO's numbers of the images in the miniature."""


def asked_of(number: int) -> list[tuple[str, str, str, str]]:
    """(question, main answer, answer type, question type) of an image, three of them."""
    colour, thing = colour_of(number), THINGS[number % len(THINGS)]
    return [
        ("What color is it?", colour, "other", "what color is"),
        (
            f"Is it {'red' if number % 2 else colour}?",
            "yes" if number % 2 == 0 or colour == "red" else "no",
            "yes/no",
            "is it",
        ),
        (f"How many things, the {thing} on the left too?", "1", "number", "how many"),
    ]


def ten_answers(main: str) -> list[dict[str, Any]]:
    """What ten annotators say: three something else, the first of them first."""
    given = ["dark", *[main] * 6, "dark", "grey", main]
    return [{"answer": text, "answer_confidence": "yes", "answer_id": place} for place, text in enumerate(given, 1)]


def vqav2(folder: Path) -> Path:
    """Questions of train2014, val2014, test2015 and test-dev2015, annotations of the first two, and the images."""
    for part, numbers in IMAGES.items():
        questions, annotations = [], []
        for number in numbers:
            save(folder / part / f"COCO_{part}_{number:012}.jpg", colour_of(number))
            for place, (question, main, answer_type, question_type) in enumerate(asked_of(number)):
                ids = {"image_id": number, "question_id": 1000 * number + place}
                questions.append({**ids, "question": question})
                types = {"answer_type": answer_type, "question_type": question_type}
                annotations.append({**ids, **types, "multiple_choice_answer": main, "answers": ten_answers(main)})
        info = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": part}
        write_json(folder / f"v2_OpenEnded_mscoco_{part}_questions.json", {**info, "questions": questions})
        if part == "test2015":
            dev = folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
            write_json(dev, {**info, "questions": questions[:3]})
        else:  # in another order than the questions
            write_json(folder / f"v2_mscoco_{part}_annotations.json", {**info, "annotations": annotations[::-1]})
    return folder


def nlvr2_records(split: str) -> list[dict[str, Any]]:
    """Eight sentences: each of four is said of two pairs of one set."""
    records = []
    for group in range(4):
        for pair in range(2):
            record = {
                "identifier": f"{split}-{group}-{pair}-0",
                "sentence": f"Both are {COLOURS[group]}, in set {group}.",
            }
            record |= {"label": str(pair == 0), "synset": "apple", "query": "apples"}
            records.append({**record, "directory": group % 2} if split == "train" else record)
    return records


def nlvr2(folder: Path) -> Path:
    """data/{train,dev,test1}.json and images/."""
    for split in ("train", "dev", "test1"):
        records = nlvr2_records(split)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "data" / f"{split}.json").write_text("".join(json.dumps(each) + "\n" for each in records))
        for record in records:
            where = folder / "images" / split / str(record.get("directory", ""))
            pair = record["identifier"].rpartition("-")[0]
            group, number = int(pair.split("-")[1]), int(pair.split("-")[2])
            save(where / f"{pair}-img0.png", COLOURS[group])
            save(where / f"{pair}-img1.png", COLOURS[group + 4 * number])
    return folder


def vcr(folder: Path) -> Path:
    """{train,val,test}.jsonl and vcr1images/ with images and metadata; test has no labels."""
    for split, number in (("train", 8), ("val", 4), ("test", 4)):
        lines = []
        for place in range(number):
            stem = f"lsmdc_{split}/{split}_{place}@{place}"
            save(folder / "vcr1images" / f"{stem}.jpg", COLOURS[place])
            boxes = [[1, 2, 9, 12, 0.9], [3, 0, 20, 20, 0.8], [10, 10, 14, 18, 0.7]]
            names = ["person", "person", "dog"]
            metadata = {"boxes": boxes, "segms": [[], [], []], "names": names, "width": 20, "height": 20}
            write_json(folder / "vcr1images" / f"{stem}.json", metadata)
            colours = [COLOURS[(place + step) % len(COLOURS)] for step in range(4)]
            record = {
                "movie": f"lsmdc_{split}",
                "objects": names,
                "img_fn": f"{stem}.jpg",
                "metadata_fn": f"{stem}.json",
                "question": ["What", "is", [0, 1], "looking", "at", "?"],
                "answer_choices": [[[2], "is", colour, "."] for colour in colours],
                "rationale_choices": [[[0], "sees", colour, "and", [2], "."] for colour in colours],
                "annot_id": f"{split}-{place}",
            }
            lines.append(
                json.dumps(record | ({} if split == "test" else {"answer_label": 0, "rationale_label": 0})) + "\n"
            )
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def xvlm_questions(folder: Path) -> Path:
    """lists/vqa_train.json, vqa_val.json, vg_qa.json, vqa_test.json and answer_list.json, COCO's images, and Visual
    Genome's in genome/."""
    for part, name in (("train2014", "train"), ("val2014", "val"), ("test2015", "test")):
        entries = []
        for number in IMAGES[part]:
            image = f"{part}/COCO_{part}_{number:012}.jpg"
            save(folder / image, colour_of(number))
            for place, (question, main, _, _) in enumerate(asked_of(number)):
                entry = {"question_id": 1000 * number + place, "question": question, "image": image, "dataset": "vqa"}
                answers = [each["answer"] for each in ten_answers(main)]
                entries.append(entry if name == "test" else {**entry, "answer": answers})
        write_json(folder / "lists" / f"vqa_{name}.json", entries)
    genome = []
    for number in (1, 2):
        save(folder / "genome" / "VG_100K" / f"{number}.jpg", colour_of(number))
        entry = {"question_id": 9000 + number, "question": "What is shown?", "image": f"VG_100K/{number}.jpg"}
        genome.append({**entry, "answer": ["An image."], "dataset": "vg"})
    write_json(folder / "lists" / "vg_qa.json", genome)
    write_json(folder / "lists" / "answer_list.json", [*COLOURS, "yes", "no", "1", "dark", "grey", "picture"])
    return folder


def xvlm_pairs(folder: Path) -> Path:
    """lists/nlvr_{train,dev,test}.json beside NLVR2's images."""
    nlvr2(folder)
    for split, name in (("train", "train"), ("dev", "dev"), ("test1", "test")):
        entries = []
        for record in nlvr2_records(split):
            where = f"images/{split}/" + (f"{record['directory']}/" if split == "train" else "")
            pair = record["identifier"].rpartition("-")[0]
            images = [f"{where}{pair}-img{side}.png" for side in (0, 1)]
            entries.append({"sentence": record["sentence"], "label": record["label"], "images": images})
        write_json(folder / "lists" / f"nlvr_{name}.json", entries)
    return folder


def nlvr(folder: Path) -> Path:
    """NLVR, version 1: train/train.json with two statements, and the six images of each."""
    lines = []
    for number, label in enumerate(("true", "false")):
        lines.append({"identifier": f"7-{number}", "sentence": "It is red.", "label": label, "directory": "0"})
        for order in range(6):
            save(folder / "train" / "images" / "0" / f"train-7-{number}-{order}.png", "red")
    (folder / "train" / "train.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_all(folder: Path) -> dict[str, dict[str, str]]:
    """Every corpus that has a source of its own, and the source's options."""
    writers = {"vqav2": vqav2, "nlvr2": nlvr2, "vcr": vcr}
    tasks = {"vqav2": "vqa", "nlvr2": "nlvr2", "vcr": "vcr"}
    return {name: {"path": str(write(folder / name)), "task": tasks[name]} for name, write in writers.items()}
