"""The list of answers that a VQA model chooses from: counted in training questions, or read from a file."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from evle.data.samples import Sample, VQASample
from evle.errors import ConfigError
from evle.metrics import normalize_answer


def main_answer(answers: Iterable[str]) -> str:
    """What most annotators say, normalised; of equally frequent answers the first. "" where they say nothing.

    VQAv2 names one such answer of each question itself; its reader puts it first.

    >>> main_answer(["red", "Pink", "pink", "dark red"]), main_answer(["the", "2", "two"]), main_answer([])
    ('pink', '2', '')
    """
    counts = Counter(filter(None, map(normalize_answer, answers)))
    return max(counts, key=lambda answer: counts[answer], default="")  # max takes the first of equals


def count_answers(samples: Sequence[Sample]) -> Counter[str]:
    """How many questions have each answer as their main one."""
    counts: Counter[str] = Counter()
    for place in range(len(samples)):
        if main := main_answer(cast(VQASample, samples[place]).answers):
            counts[main] += 1
    return counts


def frequent(counts: Counter[str], min_count: int) -> list[str]:
    """The answers of at least `min_count` questions, the most frequent first, then by the alphabet. VQAv2's usual 3129
    are those of 9 questions of train and val.

    >>> frequent(Counter(no=3, yes=3, red=2, grey=1), 2)
    ['no', 'yes', 'red']
    """
    known = [answer for answer, count in counts.items() if count >= min_count]
    return sorted(known, key=lambda answer: (-counts[answer], answer))


def write_answers(samples: Sequence[Sample], path: str | Path, min_count: int) -> str:
    """Write the frequent answers of questions to a file that `read_answers` reads; returns what to say of it.

    Raises ConfigError where no answer is frequent enough.
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
    text = json.dumps(answers, ensure_ascii=False, indent=0) if Path(path).suffix == ".json" else "\n".join(answers)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text + "\n", encoding="utf-8")
    share = 100 * sum(counts[answer] for answer in answers) / counts.total()
    return (
        f"{path}: {len(answers):,} of {len(counts):,} answers, the main ones of {share:.1f} % of "
        f"{counts.total():,} questions"
    )


def read_answers(path: str | Path) -> list[str]:
    """The answers of a file, a JSON list or one a line, as they stand: their places are those of the head's outputs.

    Raises ConfigError for a file that cannot be read, holds none, an empty one, or one twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        answers = json.loads(text) if Path(path).suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a list of answers ({error})") from None
    if not isinstance(answers, list):
        raise ConfigError(f"{path}: must hold a list of answers, not a {type(answers).__name__}")
    answers = [str(answer).strip() for answer in answers]
    if not answers:
        raise ConfigError(f"{path}: holds no answer")
    if "" in answers:
        raise ConfigError(f"{path}: answer {answers.index('')} is empty; remove it, or name what it was")
    if twice := next((answer for answer, times in Counter(answers).items() if times > 1), None):
        raise ConfigError(f"{path}: the answer {twice!r} stands twice; remove one")
    return answers


def places_of(answers: Sequence[str]) -> dict[str, int]:
    """The place of each answer as it is normalised; of several that are normalised alike the first.

    >>> places_of(["yes", "t shirt", "t-shirt"])
    {'yes': 0, 't shirt': 1}
    """
    places: dict[str, int] = {}
    for place, answer in enumerate(answers):
        places.setdefault(normalize_answer(answer), place)
    return places
