"""The answers that a VQA model chooses from: counted in the training questions, or read from a file."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from evle.data.samples import Sample, VQASample
from evle.errors import ConfigError
from evle.files import parse_json
from evle.metrics import normalize_answer

_COUNTED = re.compile(r".*[^\d\s]\s*[,;:|]\s*\d+(?:\.\d+)?")
"""An answer with a number behind it, as of a count; "1,000" is one answer."""


def main_answer(answers: Iterable[str]) -> str:
    """The most frequent answer of a question, normalised; ties are broken by order. "" if there is no answer.

    VQAv2 names one such answer for each question itself; its reader puts it first.

    >>> main_answer(["red", "Pink", "pink", "dark red"]), main_answer(["the", "2", "two"]), main_answer([])
    ('pink', '2', '')
    """
    counts = Counter(filter(None, map(normalize_answer, answers)))
    return max(counts, key=lambda answer: counts[answer], default="")  # max takes the first of equals


def count_answers(samples: Sequence[Sample]) -> Counter[str]:
    """The number of questions that have each answer as their main one."""
    counts: Counter[str] = Counter()
    for index in range(len(samples)):
        if main := main_answer(cast(VQASample, samples[index]).answers):
            counts[main] += 1
    return counts


def frequent(counts: Counter[str], min_count: int) -> list[str]:
    """The main answers of at least `min_count` questions, the most frequent first, then in alphabetical order. VQAv2's
    usual list of 3129 answers has those of at least 9 questions of train and val.

    >>> frequent(Counter(no=3, yes=3, red=2, grey=1), 2)
    ['no', 'yes', 'red']
    """
    known = [answer for answer, count in counts.items() if count >= min_count]
    return sorted(known, key=lambda answer: (-counts[answer], answer))


def write_answers(samples: Sequence[Sample], path: str | Path, min_count: int) -> str:
    """Write the frequent answers of questions to a file for `read_answers`; returns one line that describes it.

    Raises ConfigError if no answer is frequent enough.
    """
    counts = count_answers(samples)
    answers = frequent(counts, min_count)
    if not counts:
        raise ConfigError(
            "none of the questions has an answer: check the column or the file that answers are read from"
        )
    if not answers:
        raise ConfigError(
            f"no answer is the main one of {min_count} of {counts.total():,} questions; lower --min-count"
        )
    text = json.dumps(answers, ensure_ascii=False, indent=0) if _is_json(path) else "\n".join(answers)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text + "\n", encoding="utf-8")
    share = 100 * sum(counts[answer] for answer in answers) / counts.total()
    return (
        f"{path}: {len(answers):,} of {len(counts):,} answers, the main ones of {share:.1f} % of "
        f"{counts.total():,} questions"
    )


def read_answers(path: str | Path) -> list[str]:
    """The answers in a file, a JSON list or one per line, unchanged: each answer's index is that of the head's output.

    Raises ConfigError for a file that cannot be read or is of another form, that has no answer, an empty answer, or a
    duplicate.
    """
    try:
        data = Path(path).read_bytes()
        lines = [] if _is_json(path) else data.decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a list of answers ({error})") from None
    if _is_json(path):
        listed = parse_json(data, os.fspath(path), kind=list, error=ConfigError)
        for number, answer in enumerate(listed):
            if isinstance(answer, bool) or not isinstance(answer, str | int):
                raise ConfigError(f"{path}: answer {number} is {json.dumps(answer)[:40]}; write each answer as a text")
        answers = [str(answer).strip() for answer in listed]
    else:
        _refuse_other_form(path, lines)
        answers = list(map(str.strip, lines))
    if not answers:
        raise ConfigError(f"{path}: has no answer; write one per line")
    if "" in answers:
        raise ConfigError(f"{path}: answer {answers.index('')} is empty; remove it or fill it in")
    if duplicate := next((answer for answer, times in Counter(answers).items() if times > 1), None):
        raise ConfigError(f"{path}: the answer {duplicate!r} is duplicated; remove one")
    return answers


def _is_json(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".json"


def _refuse_other_form(path: str | Path, lines: Sequence[str]) -> None:
    """Raise ConfigError for lines of JSON or of a table. Some answers may end in a number, but not half of them."""
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith(("[", "{", '"')):
            raise ConfigError(f"{path}:{number}: {line.strip()[:40]!r} is no plain answer; name a JSON list .json")
        if "\t" in line.strip():
            raise ConfigError(f"{path}:{number}: {line[:40]!r} holds a tab; write the answers alone, one per line")
    counted = [line for line in lines if _COUNTED.fullmatch(line.strip())]
    if counted and 2 * len(counted) >= len(lines):
        raise ConfigError(
            f"{path}: {len(counted):,} of {len(lines):,} lines end in a number, such as {counted[0][:40]!r}; write the "
            "answers alone, one per line"
        )


def written(forms: Counter[str]) -> str:
    """How an answer is shown: its most frequent spelling. `forms` counts the spellings that are equal once normalised;
    ties are broken by order.

    >>> written(Counter({"x ray": 1, "X-ray": 3, "x-ray": 3}))
    'X-ray'
    """
    return max(forms, key=lambda form: forms[form])


def indices_of(answers: Sequence[str]) -> dict[str, int]:
    """The index of each answer by its normalised form; of several with the same form, the index of the first.

    >>> indices_of(["yes", "t shirt", "t-shirt"])
    {'yes': 0, 't shirt': 1}
    """
    indices: dict[str, int] = {}
    for index, answer in enumerate(answers):
        indices.setdefault(normalize_answer(answer), index)
    return indices
