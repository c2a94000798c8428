"""The page of claims, from a recipe's report."""

import importlib
from pathlib import Path

import pytest

from evle.config import merge
from evle.run.config import read_stages
from evle.run.stages import train
from staged import TWO, VQA, write


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return importlib.import_module("benchmarks.claims")


def test_the_page_has_every_claim_with_its_verdict(claims, tmp_path, capsys):
    claim = {"text": "Pre-training improves VQA", "of": "vqa", "than": "scratch"}
    tree = merge(TWO, {"title": "Small", "about": "A test.", "stages": {"scratch": VQA}, "claims": {"one": claim}})
    out = tmp_path / "out"
    train(read_stages(write(tmp_path, tree), [f"output={out}"]))
    claims.main([str(out), "-o", str(tmp_path / "claims.md"), "--add", "--note", "A note."])  # there is no page yet
    page = (tmp_path / "claims.md").read_text()
    assert "## Small\n\nA note.\n\nA test.\n\n0 confirmed, 0 refuted, 1 undecided." in page
    (row,) = [line for line in page.splitlines() if "Pre-training improves VQA" in line]
    assert "| vqa: " in row
    assert "| scratch: " in row
    assert "undecided" in row
    assert "3 runs," in page
    claims.main([str(out), "-o", str(tmp_path / "claims.md"), "--add", "--title", "Part of it"])
    page = (tmp_path / "claims.md").read_text()
    assert page.index("## Small\n") < page.index("## Part of it\n")
    with pytest.raises(SystemExit):
        claims.main([str(out), str(out), "-o", str(tmp_path / "x.md"), "--title", "Part of it"])
    with pytest.raises(SystemExit, match="holds no claims"):
        claims.main([str(out / "vqa"), "-o", str(tmp_path / "x.md")])
    with pytest.raises(SystemExit, match="no report"):
        claims.main([str(tmp_path), "-o", str(tmp_path / "x.md")])
    capsys.readouterr()


def test_the_page_of_the_documentation_begins_as_the_command_writes_it(claims):
    page = Path(__file__).parents[2] / "docs/claims.md"
    assert page.read_text(encoding="utf-8").startswith(f"{claims.INTRODUCTION}\n\n## ")


def test_a_section_takes_the_place_of_the_one_of_its_title_and_leaves_the_others(claims):
    page = "# Page\n\nIntroduction.\n\n## One\n\nold\n\n### Stages\n\nold\n\n## Two\n\nkept\n"
    added = claims.with_sections(page, ["## One\n\nnew\n", "## Three\n\nnew"])
    assert added == "# Page\n\nIntroduction.\n\n## One\n\nnew\n\n## Two\n\nkept\n\n## Three\n\nnew\n"


def test_each_table_has_a_chart_in_light_and_dark(claims, tmp_path):
    head = "| claim | score | of | than | difference | 95 % interval | needs | verdict |\n" + "|---" * 8 + "|\n"
    rows = (
        "| One \\_ is better | accuracy | a: 5 | b: 3 | +2.00 | +1.00 to +3.00 | above +0 | confirmed |\n"
        "| Faster | samples\\_per\\_second | a: 5 | b: 3 | +2.00 % | +1.00 to +3.00 % | above +0 % | confirmed |\n"
    )
    page = f"# Page\n\n## First\n\nNo claims.\n\n## Second\n\nA note.\n\n{head}{rows}"
    added = claims.with_charts(page, tmp_path)
    assert (
        "A note.\n\n![Differences and their intervals, as in the table below](images/claims-2.svg)\n\n| claim |"
        in added
    )
    assert claims.with_charts(added, tmp_path) == added
    (image,) = (tmp_path / "images").iterdir()
    drawing = image.read_text()
    assert "One _ is better" in drawing
    assert "Faster" not in drawing
    assert "prefers-color-scheme: dark" in drawing
