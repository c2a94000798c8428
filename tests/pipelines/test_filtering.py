"""Scoring a file of pairs: every text once, in order, resumable, and a part of them kept."""

import datetime
import json

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from commands import call
from evle import terminal
from evle.errors import ConfigError, DataError
from evle.pipelines import MatchPipeline, filtering, score_pairs
from retrieval_models import COLOURS, save_retrieval_model

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("Caption", pa.string()),
        ("sentences", pa.list_(pa.string())),
        ("title", pa.string()),
        ("day", pa.date32()),
        ("text", pa.binary()),
    ]
)


@pytest.fixture(scope="module")
def match(tmp_path_factory):
    return MatchPipeline(save_retrieval_model(tmp_path_factory.mktemp("model") / "m"), batch_size=3, num_workers=0)


@pytest.fixture
def table(tmp_path):
    rows = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (30, 20 + number), colour).save(tmp_path / f"{colour}.png")
        rows.append({"image": f"{colour}.png", "caption": f"a {colour} ball " * (1 + number % 3), "id": number})
    rows.append({"image": "red.png", "captions": ["a red ball", "how many blue balls"], "id": 5})
    rows.append({"image": "none.png", "caption": "a ball", "id": 6})
    rows.append({"image": "red.png", "caption": " ", "id": 7})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs.jsonl"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_was_kept_is_not_replaced_while_it_is_read(match, table, tmp_path):
    kept = tmp_path / "scored.kept.jsonl"
    table.rename(kept)
    with pytest.raises(ConfigError, match="would replace the input"):
        score_pairs(match, kept, tmp_path / "scored.jsonl", keep=0.1, progress=False)
    assert len(lines(kept)) == 8
    assert "end it in .jsonl" in call("match", "m", "--pairs", kept, "-o", tmp_path / "red.png", code=2)


def test_each_row_has_the_score_of_its_own_pair(match, table, tmp_path):
    scored = score_pairs(match, table, tmp_path / "out" / "scored.jsonl", progress=False)
    rows = lines(scored.output)
    assert [row["id"] for row in rows] == list(range(8))
    for row in rows[:5]:
        expected = match(tmp_path / row["image"], row["caption"])[0]["score"]
        assert row["score"] == pytest.approx(expected, abs=1e-5)
    expected = [each["score"] for each in match(tmp_path / "red.png", rows[5]["captions"])]
    assert rows[5]["scores"] == pytest.approx(expected, abs=1e-5)
    assert rows[6]["score"] is rows[7]["score"] is None
    assert "none.png" in rows[6]["error"]
    assert "pairs.jsonl:8: no text" in rows[7]["error"]
    assert (scored.num_scored, scored.num_failed, scored.kept_file) == (7, 2, None)
    assert scored.report.is_file()


def test_a_probability_or_a_share_is_kept(match, table, tmp_path):
    scores = sorted(
        value
        for row in lines(score_pairs(match, table, tmp_path / "all.jsonl", progress=False).output)
        for value in (row["scores"] if "scores" in row else [row["score"]])
        if value is not None
    )
    scored = score_pairs(match, table, tmp_path / "s.jsonl", keep=scores[3], progress=False)
    assert (scored.num_kept, scored.threshold) == (4, scores[3])
    assert "Just dropped" in scored.report.read_text()
    kept = lines(scored.kept_file)
    assert all(set(row) <= {"image", "caption", "captions", "id"} for row in kept)
    assert sum(len(row.get("captions", [1])) for row in kept) == 4
    assert score_pairs(match, table, tmp_path / "s.jsonl", top=0.5, progress=False).num_kept == 4
    assert score_pairs(match, table, tmp_path / "s.jsonl", top=1.0, progress=False).num_kept == 7


@pytest.fixture
def interrupted_at(monkeypatch):
    """Interrupts the scoring of the chunk of this number, counted from 1; the list of the texts of all chunks."""

    def interrupt(number):
        calls = []

        def margins(self, images, texts, old=MatchPipeline.margins):
            calls.append(texts)
            if len(calls) == number:
                raise KeyboardInterrupt
            return old(self, images, texts)

        monkeypatch.setattr(filtering, "CHUNK", 2)
        monkeypatch.setattr(MatchPipeline, "margins", margins)
        return calls

    return interrupt


def test_other_weights_under_the_same_name_start_again(match, table, tmp_path, interrupted_at, monkeypatch):
    output, calls = tmp_path / "scored.jsonl", interrupted_at(2)
    with pytest.raises(KeyboardInterrupt):
        score_pairs(match, table, output, progress=False)
    monkeypatch.setattr(filtering, "fingerprint", lambda pipeline: "of another training")
    score_pairs(match, table, output, progress=False)
    assert calls[2] == calls[0]


def test_an_interrupted_job_resumes_and_gives_the_same(match, table, tmp_path, interrupted_at):
    whole = score_pairs(match, table, tmp_path / "whole.jsonl", progress=False).output.read_text()
    output, calls = tmp_path / "scored.jsonl", interrupted_at(3)
    with pytest.raises(KeyboardInterrupt):
        score_pairs(match, table, output, progress=False)
    part = tmp_path / "scored.jsonl.part"
    with open(part, "a") as file:
        file.write('{"image": "torn')
    score_pairs(match, table, output, progress=False)
    assert output.read_text() == whole
    assert not part.exists()
    assert calls[3] == calls[2]


def test_scoring_and_writing_report_their_progress_and_only_shown_images_are_looked_up_again(
    match, table, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(filtering, "CHUNK", 2)
    monkeypatch.setattr(filtering, "EXAMPLES", 1)
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    looked_up = []
    monkeypatch.setattr(
        filtering, "_image_path", lambda *given, old=filtering._image_path: looked_up.append(given[0]) or old(*given)
    )
    with caplog.at_level("INFO", "evle"):
        score_pairs(match, table, tmp_path / "s.jsonl")
    for step in ("scored", "written"):
        shown = [line.split("  ")[0] for line in caplog.messages if f"rows {step}" in line]
        assert shown[-1] == f"{8 if step == 'scored' else 6}/8 rows {step}"
        assert len(shown) == 4
    assert len(looked_up) == 7 + 2  # each row with a text once; in the report, the best and the worst


def test_another_input_starts_again(match, table, tmp_path):
    (tmp_path / "s.jsonl.part").write_text('{"pairs": "other"}\n{"image": "red.png", "score": 0.5}\n')
    assert len(lines(score_pairs(match, table, tmp_path / "s.jsonl", progress=False).output)) == 8


def test_impossible_jobs_are_refused(match, table, tmp_path):
    for options in ({"keep": 1.5}, {"top": 0.0}, {"keep": 0.1, "top": 0.1}):
        with pytest.raises(ConfigError):
            score_pairs(match, table, tmp_path / "s.jsonl", progress=False, **options)
    with pytest.raises(ConfigError, match="replace the input"):
        score_pairs(match, table, table, progress=False)
    with pytest.raises(ConfigError, match="is a folder; give the name of a file"):
        score_pairs(match, table, tmp_path, progress=False)
    with pytest.raises(DataError, match="no such file"):
        score_pairs(match, tmp_path / "no.jsonl", tmp_path / "s.jsonl", progress=False)
    with pytest.raises(DataError, match="not a table of pairs"):
        score_pairs(match, tmp_path, tmp_path / "s.jsonl", progress=False)
    (tmp_path / "empty.csv").write_text("image,caption\n")
    with pytest.raises(DataError, match="has no rows"):
        score_pairs(match, tmp_path / "empty.csv", tmp_path / "s.jsonl", progress=False)


def test_captions_are_read_as_in_training_and_dates_are_kept(match, table, tmp_path):
    rows = [
        {"image": "red.png", "Caption": "a red ball"},
        {"image": "red.png", "sentences": ["a red ball", "", "..."]},
        {"image": "red.png", "title": "['a red ball', 'a blue ball']", "day": datetime.date(2024, 5, 1)},
        {"image": "red.png", "text": "a red bäll".encode()},
    ]
    parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "pairs.parquet")
    scored = score_pairs(match, tmp_path / "pairs.parquet", tmp_path / "s.jsonl", keep=0, progress=False)
    assert (scored.num_scored, scored.num_failed, scored.num_kept) == (5, 0, 5)
    first, second, third, fourth = lines(scored.output)
    assert second["scores"] == [first["score"]]
    assert third["scores"][0] == first["score"]
    assert third["day"] == "2024-05-01"
    assert fourth["text"] == "a red bäll"
    kept = lines(scored.kept_file)
    assert [kept[1]["sentences"], kept[2]["title"]] == [["a red ball"], ["a red ball", "a blue ball"]]


def test_an_output_can_be_scored_again(match, table, tmp_path):
    first = score_pairs(match, table, tmp_path / "s.jsonl", keep=0.5, progress=False)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "none.png")  # the image that was missing
    again = score_pairs(match, first.output, tmp_path / "again.jsonl", progress=False)
    assert (again.num_scored, again.num_failed) == (8, 1)
    assert [name for row in lines(again.output)[:7] for name in ("error", "kept") if name in row] == []


def test_the_verb_scores_a_table(match, table, tmp_path):
    # Exit code 1: two texts could not be scored.
    said = call("match", match.source, "--pairs", table, "-o", tmp_path / "s.jsonl", "--top", "0.5", code=1)
    assert "7 texts scored, 2 could not be" in said
    assert "evle: 2 texts could not be scored; the first: " in said
    assert "Not scored" in (tmp_path / "s.report" / "report.md").read_text()
    assert "4 texts kept" in said
    assert "next: evle data check" in said
    assert "belong together" in call("match", match.source, "--pairs", table, code=2)
    assert "an image and texts, or a table" in call("match", match.source, code=2)
