"""The verbs that ask a trained model about images: what they print and write, and what they refuse."""

import json

import pytest
import torch
from PIL import Image

from commands import call
from evle.errors import ServiceError
from evle.models.eve import EVEConfig, EVEForNLVR2
from evle.models.vle import VLEForPBC
from evle.pipelines import ChatEndpoint
from retrieval_models import SIZES, processor, save_retrieval_model, save_vqa_model
from vle_folders import save_released


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asking")
    save_vqa_model(folder / "vqa")
    save_retrieval_model(folder / "retrieval")
    save_released(folder / "pbc", VLEForPBC)
    reader = processor()
    torch.manual_seed(0)
    EVEForNLVR2(EVEConfig(**SIZES, vocab_size=len(reader.tokenizer))).save_pretrained(folder / "nlvr2")
    reader.save_pretrained(folder / "nlvr2")
    for name in ("red", "blue"):
        Image.new("RGB", (40, 30), name).save(folder / f"{name}.png")
    return folder


def test_answers_are_printed_best_first(world):
    lines = call("ask", world / "vqa", world / "red.png", "what colour?", "-k", 2).splitlines()
    assert len(lines) == 2
    shares = [float(line.split("%")[0]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert {line.split()[-1] for line in lines} <= {"red", "blue", "two"}


def test_a_language_model_has_the_last_word(world, monkeypatch):
    asked = []

    def complete(self, messages):
        asked.append((self.url, self.model, self.key_variable, messages[1]["content"]))
        return "It is a red wall."

    monkeypatch.setattr(ChatEndpoint, "complete", complete)
    options = ("--chat", "http://localhost:1/v1", "--chat-model", "small", "--key-variable", "K", "--caption", "a wall")
    said = call("ask", world / "vqa", world / "red.png", "what colour?", *options).splitlines()
    assert said[-2:] == ["caption: a wall", "It is a red wall."]
    url, model, variable, content = asked[0]
    assert (url, model, variable) == ("http://localhost:1/v1", "small", "K")
    assert "Description of the image: a wall\nQuestion: what colour?" in content


def test_a_server_that_fails_is_one_line(world, monkeypatch):
    def complete(self, messages):
        raise ServiceError("http://x: status 401, the key is wrong or missing")

    monkeypatch.setattr(ChatEndpoint, "complete", complete)
    said = call("ask", world / "vqa", world / "red.png", "what?", "--chat", "http://x/v1", code=2)
    assert "evle: http://x: status 401" in said


def test_what_a_server_answered_before_it_fails_is_printed(world, monkeypatch):
    def complete(self, messages):
        if "third" in messages[1]["content"]:
            raise ServiceError("http://x: replied with nothing")
        return "A wall."

    monkeypatch.setattr(ChatEndpoint, "complete", complete)
    questions = b"the first?\nthe second?\nthe third?\nthe fourth?\n"
    options = ("--chat", "http://x/v1", "--json")
    said = call("ask", world / "vqa", world / "red.png", "-", *options, code=2, stdin=questions).splitlines()
    assert [json.loads(line)["question"] for line in said[:2]] == ["the first?", "the second?"]
    assert said[2:] == ["evle: http://x: replied with nothing"]


def test_texts_are_ranked_by_how_well_they_match(world):
    lines = call("match", world / "retrieval", world / "red.png", "a red ball", "a blue ball").splitlines()
    assert {line.split("%  ")[1] for line in lines} == {"a red ball", "a blue ball"}
    first, second = (float(line.split("%")[0]) for line in lines)
    assert first >= second


def test_two_images_are_compared(world):
    said = call("compare", world / "nlvr2", world / "red.png", world / "blue.png", "both are red")
    assert said.endswith("%  both are red\n")


def test_a_phrase_is_painted_where_it_is(world, tmp_path):
    said = call("locate", world / "pbc", world / "red.png", "a ball", "-o", tmp_path / "found.png")
    assert "of 16 patches above 50 %" in said
    assert Image.open(tmp_path / "found.png").size == (40, 30)


@pytest.mark.parametrize("run", ["vqa", "retrieval", "pbc"])
def test_any_model_is_explained(world, tmp_path, run):
    said = call("explain", world / run, world / "red.png", "a red ball", "-o", tmp_path / "map.jpg")
    assert "3 words" in said
    assert Image.open(tmp_path / "map.jpg").width > 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "vqa", "none.png", "what?"], "none.png: no such file"),
        (["ask", "vqa", "red.png", "what?", "--caption", "a wall"], "name one with --chat or --language-model"),
        (
            ["ask", "vqa", "red.png", "what?", "--chat", "http://a/v1", "--caption", "a", "--captioner", "b"],
            "--caption and --captioner both give a caption; give one",
        ),
        (["ask", "vqa", "red.png", "what?", "--chat-model", "a"], "--chat-model is for a chat server; name the"),
        (
            ["ask", "vqa", "red.png", "what?", "--language-model", "a", "--key-variable", "OPENAI_API_KEY"],
            "--key-variable is for a chat server; name the server with --chat",
        ),
        (["ask", "vqa", "red.png", "what?", "--chat", "http://a/v1", "--language-model", "b"], "give one"),
        (["ask", "vqa", "red.png", "what?", "--chat", "localhost"], "not the base URL of a chat server"),
        (["ask", "retrieval", "red.png", "what?"], "holds EVEForRetrieval, but EVEForVQA is needed"),
        (["match", "nowhere", "red.png", "a"], "nowhere: no such folder"),
        (["locate", "vqa", "red.png", "a", "-o", "b.png"], "another family: model_type 'eve'"),
        (["locate", "pbc", "red.png", "a", "-o", "b.txt"], "b.txt: not the name of a file to write; end it in .png"),
        (["explain", "vqa", "red.png", "a", "-o", "b.png", "--method", "roll"], "unknown method 'roll'"),
    ],
)
def test_what_cannot_be_asked_is_one_line(world, monkeypatch, arguments, message):
    monkeypatch.chdir(world)
    said = call(*arguments, code=2)
    assert said.count("\n") == 1
    assert said.startswith("evle: ")
    assert message in said
