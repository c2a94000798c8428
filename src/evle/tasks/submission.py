"""Predictions as files for leaderboards and official evaluators.

VQA: a JSON list of {"question_id", "answer"} (visualqa.org); NLVR2: lines "identifier,True", NLVR: lines "image,true"
(their evaluators' scripts). A file is written only if the samples' keys are official ones: numbers for VQA, identifiers
for the other two.
"""

import json
import re
from collections.abc import Collection, Mapping

VQA_FILE = "vqa_submission.json"
NLVR_FILE = "nlvr_submission.csv"
NLVR2_FILE = "nlvr2_submission.csv"

_IDENTIFIER = re.compile(r"\w+-\d+-\d+-\d+")


def are_question_ids(keys: Collection[str]) -> bool:
    """Whether all keys are numbers, as official question ids are. No keys give False.

    >>> are_question_ids(["262148000"]), are_question_ids(["rex.jpg"])
    (True, False)
    """
    return bool(keys) and all(key.isascii() and key.isdigit() for key in keys)


def vqa_submission(answers: Mapping[str, str]) -> dict[str, str]:
    """{file name: text} of the answers by question_id; empty if a key is not a number.

    >>> vqa_submission({"262148000": "down"})
    {'vqa_submission.json': '[{"question_id": 262148000, "answer": "down"}]'}
    """
    if not are_question_ids(answers):
        return {}
    return {VQA_FILE: json.dumps([{"question_id": int(key), "answer": answer} for key, answer in answers.items()])}


def nlvr_submission(answers: Mapping[str, str]) -> dict[str, str]:
    """{file name: text} of the answers by image; empty if a key is not an image's, or an answer neither true nor false.

    >>> nlvr_submission({"dev-850-0-0": "true", "dev-850-0-1": "false"})
    {'nlvr_submission.csv': 'dev-850-0-0.png,true\\ndev-850-0-1.png,false\\n'}
    """
    if (
        not answers
        or not all(map(_IDENTIFIER.fullmatch, answers))
        or not {"true", "false"}.issuperset(answers.values())
    ):
        return {}
    return {NLVR_FILE: "".join(f"{key}.png,{answer}\n" for key, answer in answers.items())}


def nlvr2_submission(verdicts: Mapping[str, bool]) -> dict[str, str]:
    """{file name: text} of the verdicts by identifier; empty if a key is not an identifier.

    >>> nlvr2_submission({"dev-850-0-0": True, "dev-850-1-0": False})
    {'nlvr2_submission.csv': 'dev-850-0-0,True\\ndev-850-1-0,False\\n'}
    """
    if not verdicts or not all(_IDENTIFIER.fullmatch(key) for key in verdicts):
        return {}
    return {NLVR2_FILE: "".join(f"{key},{bool(verdict)}\n" for key, verdict in verdicts.items())}
