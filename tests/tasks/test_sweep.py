"""Evaluation over two real processes says what one process says."""

import json

from evaluating_processes import check_scores, scores
from processes import run_on_two


def test_two_processes_score_each_sample_once():
    run_on_two(check_scores, json.dumps({name: scores(name) for name in ("retrieval", "vqa", "nlvr2")}))
