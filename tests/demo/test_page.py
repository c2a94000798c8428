"""The page in a real browser: each tab is used, and its answer is read."""

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from demo_models import bomb, make_models

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 60_000
"""For one answer, in milliseconds: the machine may be busy."""


class Words:
    """A language model that repeats the question it read."""

    def complete(self, messages: Any) -> str:
        lines = messages[1]["content"].splitlines()
        return f"I read: {lines[0]}; {lines[1]}"


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    from evle.demo.page import demo, start

    models = make_models(tmp_path_factory.mktemp("models"))
    with demo(list(models.values()), language=Words()) as page:
        yield start(page, host="127.0.0.1", port=free_port())


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def page(browser, url) -> Iterator[Any]:
    """The open page; the test fails if it asked any other host for anything."""
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    elsewhere: list[str] = []
    opened.on("request", lambda request: keep_foreign(request.url, elsewhere))
    opened.goto(url)
    opened.get_by_role("tab").first.wait_for(timeout=SECONDS)
    yield opened
    opened.close()
    assert elsewhere == []


def keep_foreign(address: str, kept: list[str]) -> None:
    if not re.match(r"https?://127\.0\.0\.1[:/]|data:|blob:", address):
        kept.append(address)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def opened_tab(page: Any, name: str) -> Any:
    page.get_by_role("tab", name=name, exact=True).click()
    return page.locator("[role=tabpanel]:visible").last


def answer_of(panel: Any) -> Any:
    shown = panel.locator(".evle-result, .evle-alert").first
    shown.wait_for(timeout=SECONDS)
    return shown


def alert_of(panel: Any, words: str) -> None:
    panel.locator(".evle-alert", has_text=words).wait_for(timeout=SECONDS)


def test_the_tabs_are_those_that_the_models_serve(page):
    assert page.get_by_role("tab").all_inner_texts() == ["Ask", "Search", "Compare", "Reason", "Locate", "Explain"]


def test_a_question_is_answered_with_candidates_and_a_sentence(page):
    panel = opened_tab(page, "Ask")
    panel.get_by_label("Caption of the image").fill("a fruit")
    panel.get_by_label("Question").fill("which colour is it")
    panel.get_by_label("Question").press("Enter")
    text = answer_of(panel).inner_text()
    assert "I read: Description of the image: a fruit; Question: which colour is it" in text
    assert len(re.findall(r"\d%", text)) == 5


def test_search_answers_while_typing_and_reranks(page):
    panel = opened_tab(page, "Search")
    panel.get_by_label("Look for").press_sequentially("red apple", delay=20)
    answer = answer_of(panel)
    assert answer.locator("img").count() == 8
    assert "match" not in answer.inner_text()
    panel.get_by_label("Re-rank").check()
    panel.locator(".evle-cards", has_text="match").wait_for(timeout=SECONDS)


def test_search_by_an_image_finds_the_image_itself_first(page):
    from evle.demo.examples import IMAGES

    panel = opened_tab(page, "Search")
    panel.get_by_role("button", name="Search by an image").click()
    panel.locator("input[type=file]").first.set_input_files(IMAGES / "crab.webp")
    panel.locator(".image-frame img, img[src*=crab]").first.wait_for(timeout=SECONDS)
    panel.get_by_role("button", name="Find images like this one").click()
    assert answer_of(panel).locator("li").first.inner_text().startswith("1 crab")


def test_a_statement_about_two_images_is_judged(page):
    panel = opened_tab(page, "Compare")
    panel.get_by_role("button", name="Compare").click()
    assert re.match(r"(true|false)\s+true\s+[\d.]+%\s+false\s+[\d.]+%", answer_of(panel).inner_text())


def test_an_answer_and_a_reason_are_chosen_and_a_box_is_drawn_and_named(page):
    panel = opened_tab(page, "Reason")
    panel.get_by_role("button", name="Choose").click()
    text = answer_of(panel).inner_text()
    assert "Answers" in text
    assert "Reasons" in text
    assert len(re.findall(r"%", text)) == 8
    assert "because" in text
    objects, question = panel.locator("#evle-objects textarea"), panel.get_by_label("Question; [1] names")
    objects.fill("thing 300 300 50 50")
    objects.blur()
    question.fill("what is")
    preview = panel.locator(".evle-preview img").first
    box = preview.bounding_box()
    preview.click(position={"x": box["width"] * 0.45, "y": box["height"] * 0.1})
    page.wait_for_timeout(1500)
    preview.click(position={"x": box["width"] * 0.6, "y": box["height"] * 0.3})
    page.wait_for_function("document.querySelector('#evle-objects textarea').value.split('\\n').length === 2")
    page.wait_for_timeout(500)
    preview.click(position={"x": box["width"] * 0.52, "y": box["height"] * 0.2})
    page.wait_for_timeout(2000)
    assert question.input_value() == "what is [2]"


def test_the_methods_of_maps_are_those_of_the_chosen_model(page):
    panel = opened_tab(page, "Explain")
    methods = panel.locator("fieldset", has_text="Method")
    assert "gradient" in methods.inner_text()
    panel.get_by_label("Model").last.click()
    page.locator("[role=option]:visible", has_text="pretrained").first.click()
    methods.locator("label", has_text="pbc").wait_for(timeout=SECONDS)
    assert "gradient" not in methods.inner_text()


def test_a_phrase_is_located(page):
    panel = opened_tab(page, "Locate")
    panel.get_by_role("button", name="Locate").click()
    assert "the best has a probability of" in answer_of(panel).inner_text()
    assert answer_of(panel).locator("img").count() == 1


def test_the_map_of_a_word_shows_by_hovering_and_by_keyboard(page):
    panel = opened_tab(page, "Explain")
    panel.get_by_label("Text").fill("which colour is it")
    panel.get_by_role("button", name="Explain", exact=True).click()
    answer = answer_of(panel)
    words = answer.locator(".evle-words label")
    assert words.all_inner_texts()[0] == "all words"

    def seen() -> list[int]:
        page.wait_for_timeout(300)
        return [
            i
            for i, word in enumerate(words.all())
            if word.locator("img").evaluate("e => getComputedStyle(e).opacity") == "1"
        ]

    assert seen() == [0]
    words.nth(2).hover()
    assert seen() == [2]
    page.mouse.move(0, 0)
    words.nth(0).locator("input").focus()
    page.keyboard.press("ArrowRight")
    assert seen() == [1]


@pytest.mark.parametrize("tab", ["Ask", "Compare", "Locate", "Explain"])
def test_an_example_answers_at_a_click(page, tab):
    panel = opened_tab(page, tab)
    panel.locator(".evle-examples button").nth(1).click()
    assert "evle-result" in answer_of(panel).get_attribute("class")


def test_a_question_of_100_000_characters_is_refused(page):
    panel = opened_tab(page, "Ask")
    panel.get_by_label("Question").fill("a" * 100_000)
    panel.get_by_role("button", name="Ask", exact=True).click()
    alert_of(panel, "the question has 100,000 characters; shorten it to 1,000 or fewer")


@pytest.mark.parametrize(
    ("content", "words"), [(bomb(), "limit"), (b"not an image", "photo.png")], ids=["bomb", "text"]
)
def test_a_bad_image_is_refused_and_the_page_goes_on(page, tmp_path, content, words):
    (tmp_path / "photo.png").write_bytes(content)
    panel = opened_tab(page, "Ask")
    panel.locator("button[aria-label*=lear], button[title*=lear], button[aria-label*=emove]").first.click()
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "photo.png")
    page.wait_for_timeout(2000)
    panel.get_by_role("button", name="Ask", exact=True).click()
    alert_of(panel, words)
    panel.locator(".evle-examples button").first.click()
    panel.locator(".evle-result").wait_for(timeout=SECONDS)


def test_the_page_fits_a_phone_and_follows_dark_mode(browser, url):
    opened = browser.new_page(viewport={"width": 375, "height": 740}, color_scheme="dark")
    opened.goto(url)
    opened.get_by_role("tab").first.wait_for(timeout=SECONDS)
    for tab in opened.get_by_role("tab").all():
        tab.click()
        opened.wait_for_timeout(200)
        assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab.inner_text()
    red, green, blue = map(
        int, re.findall(r"\d+", opened.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert max(red, green, blue) < 64
    opened.close()


def test_an_index_whose_model_has_gone_ends_the_command(tmp_path):
    from PIL import Image

    from evle.demo.page import demo
    from evle.errors import CheckpointError
    from evle.search import build_index
    from retrieval_models import save_retrieval_model

    model = save_retrieval_model(tmp_path / "model")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "images" / "a.png")
    build_index(model, tmp_path / "images", tmp_path / "index", progress=False)
    model.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="model"), demo([tmp_path / "moved"], index=tmp_path / "index"):
        pass


def test_a_port_in_use_is_one_clear_line(url):
    import gradio as gr

    from evle.demo.page import start
    from evle.errors import ConfigError

    with gr.Blocks() as empty:
        gr.HTML("nothing")
    with pytest.raises(ConfigError, match=r"cannot be used .*choose another one with --port"):
        start(empty, host="127.0.0.1", port=int(url.rstrip("/").rsplit(":", 1)[1]))
