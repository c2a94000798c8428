"""Published corpora in miniature: their official files and images, as their archives lay them out."""

import json
from pathlib import Path
from typing import Any

from micro import COLOURS, THINGS, plain_image

NUMBERS = range(9, 9 + 24)
"""COCO's numbers of the images in the miniature."""


def save(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain_image(colour).save(path)


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def colour_of(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def captions_of(number: int) -> list[str]:
    """Five captions; the last one is the first one again, as annotators do."""
    colour, thing = colour_of(number), THINGS[number % len(THINGS)]
    texts = [f"A {colour} {thing}.", f"one {thing}", f"the {thing} is {colour}", f"an image of a {thing}"]
    return [*texts, texts[0]]


def karpathy_split(number: int) -> tuple[str, str]:
    """(Karpathy's split, COCO's folder): eight train, four restval, six val, six test."""
    place = number - NUMBERS[0]
    split = ("train", "restval", "val", "test")[(place >= 8) + (place >= 12) + (place >= 18)]
    return split, "train2014" if split == "train" else "val2014"


def coco(folder: Path) -> Path:
    """dataset_coco.json, annotations/captions_{train,val}2014.json, train2014/ and val2014/."""
    images, official = [], {"train2014": ([], []), "val2014": ([], [])}
    for number in NUMBERS:
        split, where = karpathy_split(number)
        name = f"COCO_{where}_{number:012}.jpg"
        save(folder / where / name, colour_of(number))
        sentences = [
            {"raw": text, "tokens": text.lower().strip(".").split(), "sentid": 10 * number + i, "imgid": number - 9}
            for i, text in enumerate(captions_of(number))
        ]
        images.append(
            {
                "filepath": where,
                "sentids": [each["sentid"] for each in sentences],
                "filename": name,
                "imgid": number - 9,
                "split": split,
                "sentences": sentences,
                "cocoid": number,
            }
        )
        official[where][0].append({"license": 5, "file_name": name, "height": 20, "width": 20, "id": number})
        official[where][1].extend(
            {"image_id": number, "id": each["sentid"], "caption": each["raw"]} for each in sentences
        )
    write_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    for where, (pictures, annotations) in official.items():
        tree = {"info": {"year": 2014}, "images": pictures, "licenses": [], "annotations": annotations[::-1]}
        write_json(folder / "annotations" / f"captions_{where}.json", tree)
    return folder


def flickr30k(folder: Path) -> Path:
    """dataset_flickr30k.json and flickr30k-images/."""
    images = []
    for place, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
        name = f"{1000092795 + place}.jpg"
        save(folder / "flickr30k-images" / name, colour_of(place))
        sentences = [{"raw": text, "tokens": text.split(), "sentid": 0} for text in captions_of(place)]
        images.append({"filename": name, "imgid": place, "split": split, "sentences": sentences, "sentids": [0]})
    write_json(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    return folder


def xvlm(folder: Path) -> Path:
    """coco_train.json, coco_val.json, coco_test.json as X-VLM writes them, beside COCO's images."""
    coco(folder)
    lists: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    for number in NUMBERS:
        split, where = karpathy_split(number)
        image = f"{where}/COCO_{where}_{number:012}.jpg"
        if where == "train2014" or split == "restval":
            lists["train"] += [
                {"caption": text, "image": image, "image_id": f"coco_{number}"} for text in captions_of(number)
            ]
        else:
            lists[split].append({"image": image, "caption": captions_of(number)})
    for split, entries in lists.items():
        write_json(folder / "lists" / f"coco_{split}.json", entries)
    return folder


def visual_genome(folder: Path) -> Path:
    """region_descriptions.json, objects.json, image_data.json, VG_100K/ and VG_100K_2/; image 1 is COCO's 28."""
    regions, objects, data = [], [], []
    for number in range(1, 13):
        colour, thing = colour_of(number), THINGS[number % len(THINGS)]
        save(folder / ("VG_100K" if number % 2 else "VG_100K_2") / f"{number}.jpg", colour)
        phrases = [f"a {colour} {thing}", f"{thing} on the left", " "]
        place = {"image_id": number, "y": 2, "width": 8, "height": 9}
        described = [{**place, "region_id": 10 * number + i, "phrase": text, "x": i} for i, text in enumerate(phrases)]
        regions.append({"id": number, "regions": described})
        named = {"synsets": [], "object_id": number, "merged_object_ids": [], "names": [thing.title(), "thing"]}
        nameless = {"object_id": 100 + number, "names": [], "x": 0, "y": 0, "w": 3, "h": 3}
        objects.append(
            {"image_id": number, "objects": [{**named, "x": 1, "y": 2, "w": 5, "h": 6}, nameless], "image_url": ""}
        )
        coco_id, flickr_id = (28 if number == 1 else None), (1000092807 if number == 2 else None)
        data.append({"image_id": number, "width": 20, "height": 20, "coco_id": coco_id, "flickr_id": flickr_id})
    write_json(folder / "region_descriptions.json", regions)
    write_json(folder / "objects.json", objects[::-1])
    write_json(folder / "image_data.json", data)
    return folder


def photo_link(number: int) -> str:
    """A link to a photo on Flickr; photos 0 to 7 of the miniature are Flickr30K's training images, 8 and on not."""
    return f"http://static.flickr.com/2723/{1000092795 + number}_b0f291553e.jpg"


def sbu(folder: Path) -> Path:
    """sbu-captions-all.json and images named by their links; of twelve links two are dead."""
    links = [photo_link(number) for number in range(12)]
    captions = [f"{colour_of(number)} {THINGS[number % len(THINGS)]} in my garden" for number in range(12)]
    write_json(folder / "sbu-captions-all.json", {"image_urls": links, "captions": captions, "user_ids": ["x"] * 12})
    for number in range(12):
        if number not in (3, 7):
            save(folder / "images" / links[number].rpartition("/")[2], colour_of(number))
    return folder


def cc(folder: Path) -> Path:
    """A TSV as of CC3M and images as img2dataset writes them: 00000/000000000.jpg, .txt and .json."""
    lines = []
    for number in range(10):
        caption = f"a {colour_of(number)} {THINGS[number % len(THINGS)]} on a wall"
        lines.append(f"{caption}\thttps://example.org/{number}/photo.jpg?size=large\n")
        if number not in (2, 5):
            stem = folder / "images" / "00000" / f"{number:09}"
            save(stem.with_suffix(".jpg"), colour_of(number))
            stem.with_suffix(".txt").write_text(caption)
            write_json(stem.with_suffix(".json"), {"caption": caption, "key": stem.name, "status": "success"})
    (folder / "Train_GCC-training.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


OPTIONS: dict[str, dict[str, str]] = {
    "karpathy": {"path": "coco"},
    "coco-captions": {"path": "coco"},
    "xvlm": {"path": "coco/lists", "images": "coco", "split": "train"},
    "visual-genome": {"path": "visual-genome"},
    "sbu": {"path": "sbu", "images": "sbu/images"},
    "cc": {"path": "cc", "images": "cc/images"},
}
"""Options of each source of captions below a folder that `write_all` filled."""


def write_all(folder: Path) -> Path:
    """Every corpus, each in a folder of its own."""
    xvlm(folder / "coco")
    flickr30k(folder / "flickr30k")
    visual_genome(folder / "visual-genome")
    sbu(folder / "sbu")
    cc(folder / "cc")
    return folder


def options_of(source: str, folder: Path) -> dict[str, str]:
    """The options of a source, its paths below `folder`."""
    return {
        name: str(folder / value) if name in ("path", "images") else value for name, value in OPTIONS[source].items()
    }
