"""The bare model is given what `evle match --pairs` gives it."""

import json

import pytest
import torch
from benchmarks.match_pairs import bare_batches, random_model, write_pairs

from evle.pipelines import score_pairs


def test_the_bare_model_scores_the_same_pairs(tmp_path):
    table = write_pairs(tmp_path, 5, 48)
    captions = [json.loads(line)["caption"] for line in table.read_text().splitlines()]
    torch.manual_seed(0)
    match = random_model("eve-tiny", captions, batch_size=2, num_workers=0)
    score_pairs(match, table, tmp_path / "scored.jsonl", progress=False)
    scores = sorted(json.loads(line)["score"] for line in (tmp_path / "scored.jsonl").read_text().splitlines())
    with match.evaluating():
        logits = torch.cat([match.model.itm_logits(**batch) for batch in bare_batches(match, table)])
    assert sorted(logits.softmax(dim=-1)[:, 1].tolist()) == pytest.approx(scores, abs=1e-5)
