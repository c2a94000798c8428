"""How well answers can be guessed from the words alone, without the images.

A benchmark on which this is far above chance measures language, not vision. See Goyal et al., "Making the V in VQA
matter" (2017).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from evle.data.samples import CaptionSample, NLVR2Sample, Sample, Tagged, VCRSample, VQASample
from evle.data.synthetic.text_alone import Pair, accuracy


@dataclass(frozen=True)
class Blindness:
    """Accuracies in percent by question type.

    `blind` is that of the guesser, `chance` that of guessing uniformly among the answers to such questions.
    """

    blind: dict[str, float]
    chance: dict[str, float]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Riddle:
    """A question without its image.

    `cues` are texts from the most to the least specific, `choices` the texts to choose from (None: all answers seen),
    `pair` a true caption and its swapped form.
    """

    type: str
    cues: tuple[str, ...]
    answer: str
    choices: tuple[str, ...] | None = None
    pair: Pair | None = None


def blind_accuracy(train: Iterable[Sample], test: Iterable[Sample]) -> Blindness:
    """Fit a guesser on the words of `train` and score it on `test`; samples without answers are skipped.

    A question gets the most frequent answer to the same question, to the same question type and first words, or to the
    type: the most specific of these that training has seen at least five times. Choices are guessed by how often their
    words were right, a caption and its swapped form by their n-grams (see `evle.data.synthetic.text_alone`).
    """
    swaps: dict[str, tuple[list[Pair], list[Pair]]] = defaultdict(lambda: ([], []))
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    offers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for riddle in _riddles(train):
        if riddle.pair is not None:
            swaps[riddle.type][0].append(riddle.pair)
        for cue in riddle.cues:
            counts[riddle.type, cue][riddle.answer] += 1
            offers[riddle.type, cue].update(riddle.choices or ())
    right: defaultdict[str, float] = defaultdict(float)
    chance: defaultdict[str, float] = defaultdict(float)
    total: Counter[str] = Counter()
    for riddle in _riddles(test):
        total[riddle.type] += 1
        if riddle.pair is not None:
            swaps[riddle.type][1].append(riddle.pair)
            continue
        special = next((cue for cue in riddle.cues if counts[riddle.type, cue].total() >= 5), None)
        if riddle.choices is not None:
            chance[riddle.type] += 1 / len(riddle.choices)
            rates = [
                (counts[riddle.type, special][choice] + 1)
                / (offers[riddle.type, special][choice] + len(riddle.choices))
                if special is not None
                else 0.0
                for choice in riddle.choices
            ]
            # equal guesses share the point
            best = [choice for choice, rate in zip(riddle.choices, rates) if rate == max(rates)]
            right[riddle.type] += (riddle.answer in best) / len(best)
        else:
            known = next((counts[riddle.type, each] for each in riddle.cues[1:] if counts[riddle.type, each]), None)
            chance[riddle.type] += 1 / len(known) if known else 0.0
            if special is not None:
                right[riddle.type] += counts[riddle.type, special].most_common(1)[0][0] == riddle.answer
    types = sorted(total)
    told = {type_: accuracy(*pairs) for type_, pairs in swaps.items()}
    return Blindness(
        {each: told[each] if each in told else 100 * right[each] / total[each] for each in types},
        {each: 50.0 if each in told else 100 * chance[each] / total[each] for each in types},
        {each: total[each] for each in types},
    )


def _riddles(samples: Iterable[Sample]) -> Iterator[_Riddle]:
    for sample in samples:
        if isinstance(sample, VQASample) and sample.answers:
            words = sample.question.split()
            kind = sample.question_type or sample.answer_type or "question"
            template = f"{' '.join(words[:2])}|{len(words)}"
            yield _Riddle(kind, (sample.question, template, ""), Counter(sample.answers).most_common(1)[0][0])
        elif isinstance(sample, NLVR2Sample) and sample.label is not None:
            yield _Riddle("nlvr2", (sample.sentence, " ".join(sample.sentence.split()[:4]), ""), str(sample.label))
        elif isinstance(sample, CaptionSample) and sample.swap is not None:
            pair = (sample.captions[0], sample.swap.caption)
            yield _Riddle(f"swap of {sample.swap.type}", (), pair[0], pair=pair)
        elif isinstance(sample, VCRSample):
            yield from _choices(sample)


def _choices(sample: VCRSample) -> Iterator[_Riddle]:
    """The choices of a sample. The numbers of tags carry no information: tags are numbered by their first mention in
    the question, then in the choice."""
    question = [token for token in sample.question if isinstance(token, tuple)]
    template = _text(sample.question, question)
    if sample.answer_label is not None:
        texts = tuple(_text(choice, question) for choice in sample.answer_choices)
        yield _Riddle("answer", (template, ""), texts[sample.answer_label], texts)
    if sample.rationale_label is not None and sample.answer_label is not None:
        right = sample.answer_choices[sample.answer_label]
        known = [*question, *(token for token in right if isinstance(token, tuple))]
        texts = tuple(_text(choice, known) for choice in sample.rationale_choices)
        yield _Riddle(
            "rationale", (f"{template} {_text(right, known)}", template, ""), texts[sample.rationale_label], texts
        )


def _text(tagged: Tagged, known: list[tuple[int, ...]]) -> str:
    names = {tag: f"[{index}]" for index, tag in reversed(list(enumerate(known)))}
    text = " ".join(token if isinstance(token, str) else names.get(token, "[new]") for token in tagged)
    return re.sub(r"\s+", " ", text)
