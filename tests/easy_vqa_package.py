"""easy-VQA in miniature, as its package lays it out."""

import json

from PIL import Image

QUESTIONS = [
    ["what is the blue shape?", "rectangle", 0],
    ["what color is the shape?", "blue", 0],
    ["is there not a red shape?", "yes", 0],
    ["is there a triangle?", "yes", 1],
]


def write_easy_vqa(folder, images=2, questions=QUESTIONS):
    """The layout of the package's `data` folder."""
    for split in ("train", "test"):
        (folder / split / "images").mkdir(parents=True)
        for number in range(images):
            Image.new("RGB", (8, 8), "blue").save(folder / split / "images" / f"{number}.png")
        (folder / split / "questions.json").write_text(json.dumps(questions))
    return folder
