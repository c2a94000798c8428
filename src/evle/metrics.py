"""Scores, as the official evaluators compute them: retrieval recall, VQA accuracy, NLVR2, VCR, and average precision
of patches.

Pure functions of lists and tensors. Scores are percentages in a dict by name. The order of the inputs does not matter,
and inputs are never written to. Retrieval never holds more than one block of the score matrix.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from evle.errors import DataError

BLOCK_ENTRIES = 4_000_000
"""Largest block of similarities held at once: 16 MB of float32, and a few times that while it is sorted."""

NOT_FOUND = 2**62
"""The rank of a correct item that is not in the list."""

# --- retrieval (Q queries, G gallery items, D width; row i of a matrix of embeddings belongs to ids[i])


def _blocks(count: int, size: int) -> Iterable[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _block_sizes(num_queries: int, num_gallery: int, entries: int) -> tuple[int, int]:
    """Rows and columns of a block: whole rows of the score matrix where they fit."""
    columns = max(1, min(num_gallery, entries))
    return max(1, min(num_queries, entries // columns)), columns


def top_k(queries: Tensor, gallery: Tensor, k: int, *, block_entries: int = BLOCK_ENTRIES) -> tuple[Tensor, Tensor]:
    """The k best gallery items of each query by dot product.

    Returns scores, float32 (Q, k) in descending order, and indices, int64 (Q, k). Ties are broken by the order of the
    gallery, so the result does not depend on the block size. k is at most the size of the gallery.
    """
    k = min(k, len(gallery))
    num_rows, num_columns = _block_sizes(len(queries), len(gallery), block_entries)
    all_scores, all_indices = [], []
    for rows in _blocks(len(queries), num_rows):
        query = queries[rows].float()
        scores = torch.empty(len(query), 0, device=query.device)
        indices = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
        for columns in _blocks(len(gallery), num_columns):
            block = query @ gallery[columns].float().T
            block_scores, block_indices = stable_top_k(block, k)
            # Earlier indices are lower than this block's, so a stable selection keeps ties in the order of the gallery.
            scores = torch.cat([scores, block_scores], dim=1)
            indices = torch.cat([indices, block_indices + columns.start], dim=1)
            scores, chosen = stable_top_k(scores, k)
            indices = indices.gather(1, chosen)
        all_scores.append(scores)
        all_indices.append(indices)
    if not all_scores:
        return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
    return torch.cat(all_scores), torch.cat(all_indices)


def stable_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk with ties broken by index; torch.topk does not define the order of ties."""
    k = min(k, scores.shape[1])
    values, indices = scores.topk(k, dim=1)
    if k < scores.shape[1]:
        # Where entries outside of the top k equal the last value, topk's choice among them is arbitrary: sort the row.
        tied = (scores == values[:, -1:]).sum(1) > (values == values[:, -1:]).sum(1)
        if tied.any():
            full = scores[tied].sort(dim=1, descending=True, stable=True)
            values[tied], indices[tied] = full.values[:, :k], full.indices[:, :k]
    indices, order = indices.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def best_ranks(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    block_entries: int = BLOCK_ENTRIES,
) -> Tensor:
    """The rank of each query's best correct gallery item, int64 (Q,): the number of wrong items before it; 0 is best.

    An item is correct when its id equals the query's. Ties count against the model: a wrong item with the same score
    ranks first, so a model that gives every item the same score gains nothing. The result is exact and takes two passes
    over blocks of the score matrix. A query without any correct item gets `NOT_FOUND`.
    """
    num_rows, num_columns = _block_sizes(len(queries), len(gallery), block_entries)
    ranks = torch.empty(len(queries), dtype=torch.int64)
    for rows in _blocks(len(queries), num_rows):
        query, ids = queries[rows].float(), query_ids[rows]
        best = torch.full((len(query),), -torch.inf, device=query.device)
        for columns in _blocks(len(gallery), num_columns):
            scores = query @ gallery[columns].float().T
            right = ids[:, None] == gallery_ids[columns]
            best = torch.maximum(best, scores.masked_fill(~right, -torch.inf).amax(1))
        wrong = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        for columns in _blocks(len(gallery), num_columns):
            scores = query @ gallery[columns].float().T
            right = ids[:, None] == gallery_ids[columns]
            wrong += (~(scores < best[:, None]) & ~right).sum(1)  # written as a negation so that NaN counts as wrong
        ranks[rows] = torch.where(best == -torch.inf, NOT_FOUND, wrong).cpu()
    return ranks


def list_ranks(ranked_ids: Tensor, query_ids: Tensor) -> Tensor:
    """The index of the first correct item in each query's ranked gallery ids (Q, k): int64 (Q,), or `NOT_FOUND`.

    For lists that were not ranked by a dot product, such as those that the ITM head re-ranks.
    """
    right = ranked_ids == query_ids[:, None]
    return torch.where(right.any(1), right.int().argmax(1), NOT_FOUND).cpu()


def retrieval_scores(
    image_to_text_ranks: Tensor, text_to_image_ranks: Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recalls in percent: `TR@k` (one of an image's texts is in the top k), `IR@k` (a text's image is), and their mean
    `R@mean`.

    >>> retrieval_scores(torch.tensor([0, 4]), torch.tensor([0, 0, 0, 9]), ks=(1, 5))
    {'TR@1': 50.0, 'TR@5': 100.0, 'IR@1': 75.0, 'IR@5': 75.0, 'R@mean': 75.0}
    """
    scores = {}
    for name, ranks in (("TR", image_to_text_ranks), ("IR", text_to_image_ranks)):
        for k in ks:
            scores[f"{name}@{k}"] = 100.0 * (ranks < k).double().mean().item()
    scores["R@mean"] = sum(scores.values()) / len(scores)
    return scores


def retrieval_chance(
    image_ids: Sequence[int], text_ids: Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """The expected `retrieval_scores` of lists in random order, under the same names."""

    def recall(queries: Sequence[int], gallery: Sequence[int], k: int) -> float:
        counts, k = Counter(gallery), min(k, len(gallery))
        missed = sum(math.comb(len(gallery) - counts[query], k) / math.comb(len(gallery), k) for query in queries)
        return 100.0 * (1 - missed / len(queries))

    scores = {f"TR@{k}": recall(image_ids, text_ids, k) for k in ks}
    scores |= {f"IR@{k}": recall(text_ids, image_ids, k) for k in ks}
    return scores | {"R@mean": sum(scores.values()) / len(scores)}


# --- VQA (the official evaluator: github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py, whose
# last commit, of March 2021, is called "Fixed processing answers bug")

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {word: str(number) for number, word in enumerate(NUMBERS)}
NUMBER_WORDS["none"] = "0"
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r"\d,\d")
# The official pattern is meant to look for a digit before the point too, but is misspelt and never does: followed.
STRAY_PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32
"""The most stray periods that are removed: the official code passes a flag of this value as a count. Followed."""
OFFICIAL_ANNOTATORS = 10

VQARule = bool | Literal["before-2021"]
"""How ten annotators are compared: false normalises every answer, true is the official evaluator, "before-2021" the
official evaluator before its correction. See `vqa_score`."""

# The words whose apostrophe the official table restores. A word is looked up by each spelling that lacks one of its
# apostrophes.
APOSTROPHE_WORDS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in APOSTROPHE_WORDS.split()
    for at, letter in enumerate(word)
    if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # The official table has this entry the wrong way round: followed.


@lru_cache(maxsize=65_536)
def normalize_answer(answer: str) -> str:
    """Normalise an answer as the official VQA evaluator does: lower case, digits for number words, no articles,
    apostrophes restored.

    Its rule for punctuation is followed exactly. A mark is removed where the answer has it next to a blank anywhere, or
    has a comma between digits anywhere; otherwise it becomes a blank. Marks that the rule does not list, such as `:`,
    `'` and `%`, are kept.

    >>> [normalize_answer(answer) for answer in ("The two dogs.", "10,000", "yes/no", "dont know", "1.5")]
    ['2 dogs', '10000', 'yes no', "don't know", '1.5']
    """
    text = strip_punctuation(_one_line(answer))
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=65_536)
def strip_punctuation(answer: str) -> str:
    """Apply the official evaluator's rule for punctuation alone (see `normalize_answer`)."""
    has_digit_comma = DIGIT_COMMA.search(answer) is not None
    text = answer
    for mark in PUNCTUATION:
        beside_blank = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_blank or has_digit_comma else " ")
    return STRAY_PERIOD.sub("", text, count=MOST_PERIODS)


def _one_line(answer: str) -> str:
    """The answer without line breaks, tabs and blanks around it; the official evaluator does this in every case."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def vqa_score(answer: str, annotators: Sequence[str], *, official: VQARule = False) -> float:
    """The VQA accuracy of one answer, 0 to 1: the mean over leave-one-out sets of min(matches / 3, 1).

    By default all answers are normalised. `official=True` compares ten annotators, VQAv2's number, exactly as the
    official evaluator does since its correction of March 2021: where the annotators disagree, their answers and the
    given one are normalised; where all ten agree, neither side is, so that "T-shirt" scores 0 against ten "t-shirt".
    `official="before-2021"` is the evaluator before that correction, which older papers report: it always normalised
    the given answer, and of the annotators only their punctuation, where they disagree.

    One annotator is simply right or wrong. Of two or three, a number that the official rule does not cover, all others
    must agree for a full score. Raises DataError without annotators.
    """
    if not annotators:
        raise DataError(
            "a question without annotators' answers cannot be scored; leave it out, or only predict its answer"
        )
    rule = official if len(annotators) == OFFICIAL_ANNOTATORS else False
    if rule == "before-2021":
        given, others_say = normalize_answer(answer), list(annotators)
        if len(set(annotators)) > 1:
            others_say = list(map(strip_punctuation, annotators))
    else:
        given, others_say = _one_line(answer), list(map(_one_line, annotators))
        if not rule or len(set(others_say)) > 1:
            given, others_say = normalize_answer(given), list(map(normalize_answer, others_say))
    matches = others_say.count(given)
    others = len(annotators) - 1
    if not others:
        return float(matches)
    needed = min(3, others)
    # Leaving out one of the `matches` that agree leaves one fewer.
    left_with_fewer = matches * min((matches - 1) / needed, 1.0)
    left_with_all = (len(annotators) - matches) * min(matches / needed, 1.0)
    return (left_with_fewer + left_with_all) / len(annotators)


def vqa_accuracy(
    answers: Sequence[str],
    annotators: Sequence[Sequence[str]],
    *,
    answer_types: Sequence[str] | None = None,
    question_types: Sequence[str] | None = None,
    official: VQARule = False,
) -> dict[str, float]:
    """Percent: `accuracy` of all answers, and of each type that is not empty, such as `accuracy/answer/number` and
    `accuracy/question/what is`. `official` is that of `vqa_score`.

    Raises DataError for no answers at all.

    >>> vqa_accuracy(["Red", "2"], [["red"], ["3"]], answer_types=["other", "number"])
    {'accuracy': 50.0, 'accuracy/answer/number': 0.0, 'accuracy/answer/other': 100.0}
    """
    points = [vqa_score(answer, others, official=official) for answer, others in zip(answers, annotators, strict=True)]
    scores = {"accuracy": _percent(points)}
    for group, types in (("answer", answer_types), ("question", question_types)):
        by_type = defaultdict(list)
        for point, name in zip(points, types or [""] * len(points), strict=True):
            by_type[name].append(point)
        scores |= {f"accuracy/{group}/{name}": _percent(by_type[name]) for name in sorted(by_type) if name}
    return scores


def soft_scores(annotators: Iterable[str]) -> dict[str, float]:
    """The training target of each normalised answer: 0.3, 0.6, 0.9, 1 for 1, 2, 3, 4 or more annotators (EVE; this is
    not the metric above).

    With fewer than four annotators, an answer that all of them give counts 1.

    >>> soft_scores(["red", "Red", "pink"] + ["dark red"] * 7)
    {'red': 0.6, 'pink': 0.3, 'dark red': 1.0}
    """
    counts = Counter(normalize_answer(answer) for answer in annotators)
    enough = min(4, counts.total())
    return {answer: 1.0 if count >= enough else round(0.3 * count, 1) for answer, count in counts.items() if answer}


# --- NLVR2, VCR, patches


def nlvr2_scores(
    predictions: Sequence[int], labels: Sequence[int], set_ids: Sequence[str] | None = None
) -> dict[str, float]:
    """Percent: `accuracy`, and with `set_ids` also `consistency`, the share of sentences that are judged correctly for
    every one of their pairs.

    >>> nlvr2_scores([1, 0, 1], [1, 0, 0], ["a", "a", "b"])["consistency"]
    50.0
    """
    right = [prediction == label for prediction, label in zip(predictions, labels, strict=True)]
    scores = {"accuracy": _percent(right)}
    if set_ids is not None:
        scores["consistency"] = consistency(right, set_ids)
    return scores


def consistency(right: Sequence[bool], set_ids: Sequence[str]) -> float:
    """The percentage of sets whose members are all right.

    >>> consistency([True, False, True], ["a", "a", "b"])
    50.0
    """
    all_right: dict[str, bool] = {}
    for is_right, name in zip(right, set_ids, strict=True):
        all_right[name] = all_right.get(name, True) and is_right
    return _percent(list(all_right.values()))


def swap_scores(
    true: Mapping[str, tuple[float, float]], sets: Mapping[str, str], types: Mapping[str, str]
) -> dict[str, float]:
    """Percent of images that score higher with their true caption than with the swapped one, as `accuracy` and for each
    type as `accuracy/order`; equal scores are wrong.

    `true` holds by key the scores of an image with (true, swapped) caption, `sets` and `types` the set and type of each
    key. With sets of two images, Winoground's scores are added: `text`, both images prefer their caption; `image`, both
    captions prefer their image; `group`, all of these.

    >>> swap_scores({"a": (2.0, 1.0), "b": (0.5, 0.0)}, {"a": "s", "b": "s"}, {"a": "order", "b": "order"})
    {'accuracy': 100.0, 'accuracy/order': 100.0, 'text': 100.0, 'image': 0.0, 'group': 0.0}
    """
    right = {key: first > second for key, (first, second) in true.items()}
    scores = {"accuracy": _percent(list(right.values()))}
    for name in sorted(set(types.values())):
        scores[f"accuracy/{name}"] = _percent([right[key] for key in true if types[key] == name])
    members: dict[str, list[str]] = defaultdict(list)
    for key in true:
        members[sets[key]].append(key)
    pairs = [keys for keys in members.values() if len(keys) == 2]
    if pairs:
        text = [right[one] and right[other] for one, other in pairs]
        # The swapped caption of one image is the true one of the other.
        image = [true[one][0] > true[other][1] and true[other][0] > true[one][1] for one, other in pairs]
        scores |= {"text": _percent(text), "image": _percent(image)}
        scores["group"] = _percent([t and i for t, i in zip(text, image)])
    return scores


def vcr_scores(choices: Mapping[str, Sequence[int]], labels: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Percent of correct choices of four for "q2a" and "qa2r", whichever are given, and of questions with both correct,
    `q2ar`.

    `choices` and `labels` hold one number per question under each name, with the questions in the same order.

    >>> vcr_scores({"q2a": [0, 1], "qa2r": [3, 2]}, {"q2a": [0, 1], "qa2r": [3, 0]})
    {'q2a': 100.0, 'qa2r': 50.0, 'q2ar': 50.0}
    """
    right = {
        name: [choice == label for choice, label in zip(choices[name], labels[name], strict=True)]
        for name in ("q2a", "qa2r")
        if name in choices
    }
    scores = {name: _percent(row) for name, row in right.items()}
    if len(right) == 2:
        scores["q2ar"] = _percent([a and r for a, r in zip(right["q2a"], right["qa2r"], strict=True)])
    return scores


def average_precision(scores: Tensor, labels: Tensor) -> float:
    """Average precision, 0 to 1, of `scores` (any shape) for the entries that `labels` (bool, same shape) marks true.

    The sum over descending thresholds of precision times the gain in recall. Equal scores share a threshold, so their
    order does not matter. NaN where no entry is true.
    """
    scores, labels = scores.flatten().double(), labels.flatten().bool()
    order = scores.argsort(descending=True)
    scores, hits = scores[order], labels[order].double().cumsum(0)
    # The last index of each run of equal scores.
    ends = torch.cat([(scores[1:] != scores[:-1]).nonzero().flatten(), torch.tensor([len(scores) - 1])])
    found = hits[ends]
    precision = found / (ends + 1)
    return (precision * found.diff(prepend=torch.zeros(1)) / found[-1]).sum().item()


def shared_information(one: Sequence[float], other: Sequence[float]) -> float:
    """How much the outcome tells about which of two equally frequent groups it comes from, in bits: 0 to 1.

    `one` and `other` are the groups' distributions over the same outcomes, on any scale (Jensen-Shannon divergence).

    >>> shared_information([50, 50], [50, 50]), shared_information([100, 0], [0, 100])
    (0.0, 1.0)
    """
    groups = torch.tensor([list(one), list(other)], dtype=torch.float64)
    groups /= groups.sum(dim=1, keepdim=True)
    entropies = -torch.special.xlogy(groups, groups).sum(dim=1)
    mixed = groups.mean(dim=0)
    bits = (-torch.special.xlogy(mixed, mixed).sum() - entropies.mean()) / math.log(2)
    return max(0.0, float(bits))


def _percent(points: Sequence[float]) -> float:
    if not points:
        raise DataError("there is nothing to score; the split is empty, or every sample was skipped")
    return 100.0 * sum(points) / len(points)
