"""Naive loops that the fast code is held against: slow, obvious, one number at a time."""

import math

import torch
from torch import Tensor

from evle.metrics import CONTRACTIONS


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def soft_routing(
    states: Tensor, gate: Tensor, experts: list[tuple[Tensor, Tensor, Tensor, Tensor]], top_k: int, capacity: int | None
) -> Tensor:
    """Each token (N, D) through its best experts, one token and one expert at a time.

    `gate` (E, D); an expert is (up weight, up bias, down weight, down bias). Slots of an expert are filled first choice
    by first choice, then second by second; what finds no slot is dropped before the weights are renormalised.
    """
    choices, gates = [], []
    for state in states:
        probabilities = torch.softmax(gate @ state, dim=0)
        ranked = sorted(range(len(experts)), key=lambda expert: -float(probabilities[expert]))
        choices.append(ranked[:top_k])
        gates.append([float(probabilities[expert]) for expert in ranked[:top_k]])
    used = [0] * len(experts)
    for rank in range(top_k):
        for token in range(len(states)):
            expert = choices[token][rank]
            used[expert] += 1
            if capacity is not None and used[expert] > capacity:
                gates[token][rank] = 0.0
    outputs = torch.zeros_like(states)
    for token, state in enumerate(states):
        total = sum(gates[token]) if top_k > 1 else 1.0
        for expert, weight in zip(choices[token], gates[token], strict=True):
            if weight > 0:
                up, up_bias, down, down_bias = experts[expert]
                outputs[token] += weight / total * (down @ quick_gelu(up @ state + up_bias) + down_bias)
    return outputs


def balance(gates: list[list[float]]) -> float:
    """E * sum of (share of tokens whose best expert is i) * (mean probability of i)."""
    num_tokens, num_experts = len(gates), len(gates[0])
    total = 0.0
    for expert in range(num_experts):
        share = sum(row.index(max(row)) == expert for row in gates) / num_tokens
        total += share * sum(row[expert] for row in gates) / num_tokens
    return num_experts * total


def cross_entropy(logits: list[float], targets: list[float]) -> float:
    """Soft cross-entropy of one row."""
    top = max(logits)
    normaliser = top + math.log(sum(math.exp(value - top) for value in logits))
    return sum(target * (normaliser - value) for value, target in zip(logits, targets, strict=True))


def itc(
    image_to_text: list[list[float]], text_to_image: list[list[float]], ids: list[int], all_ids: list[int]
) -> float:
    """Mean of both directions, targets spread evenly over equal ids."""
    total = 0.0
    for row, own in enumerate(ids):
        equal = [float(other == own) for other in all_ids]
        targets = [value / sum(equal) for value in equal]
        total += cross_entropy(image_to_text[row], targets) + cross_entropy(text_to_image[row], targets)
    return total / (2 * len(ids))


def mlm(logits: list[list[float]], labels: list[int]) -> float:
    """Mean cross-entropy over the rows with a label."""
    losses = []
    for row, label in zip(logits, labels, strict=True):
        if label != -100:
            losses.append(cross_entropy(row, [float(index == label) for index in range(len(row))]))
    return sum(losses) / len(losses)


def answers(logits: list[list[float]], targets: list[list[float]]) -> float:
    """Binary cross-entropy summed over answers, averaged over rows."""
    total = 0.0
    for row, wanted in zip(logits, targets, strict=True):
        for logit, target in zip(row, wanted, strict=True):
            probability = 1 / (1 + math.exp(-logit))
            total -= target * math.log(probability) + (1 - target) * math.log(1 - probability)
    return total / len(logits)


def normalized_answer(answer: str) -> str:
    """The official VQA evaluator's processPunctuation and processDigitArticle, mark by mark and word by word."""
    text = answer
    for mark in [
        ";",
        "/",
        "[",
        "]",
        '"',
        "{",
        "}",
        "(",
        ")",
        "=",
        "+",
        "\\",
        "_",
        "-",
        ">",
        "<",
        "@",
        "`",
        ",",
        "?",
        "!",
    ]:
        digits_around_comma = any(
            answer[at] == "," and answer[at - 1].isdecimal() and answer[at + 1].isdecimal()
            for at in range(1, len(answer) - 1)
        )
        if mark + " " in answer or " " + mark in answer or digits_around_comma:
            text = text.replace(mark, "")
        else:
            text = text.replace(mark, " ")
    kept, removed = "", 0
    for at, letter in enumerate(text):
        if letter == "." and not text[at + 1 : at + 2].isdecimal() and removed < 32:
            removed += 1
        else:
            kept += letter
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    words = []
    for word in kept.lower().split():
        word = "0" if word == "none" else str(numbers.index(word)) if word in numbers else word
        if word not in ("a", "an", "the"):
            words.append(CONTRACTIONS.get(word, word))
    return " ".join(words)


def vqa_score(answer: str, annotators: list[str]) -> float:
    """The official VQA accuracy since March 2021 of one answer, one left-out annotator at a time."""
    given = answer.replace("\n", " ").replace("\t", " ").strip()
    truths = [each.replace("\n", " ").replace("\t", " ").strip() for each in annotators]
    if any(each != truths[0] for each in truths):
        given, truths = normalized_answer(given), [normalized_answer(each) for each in truths]
    total = 0.0
    for left_out in range(len(truths)):
        matching = [each for index, each in enumerate(truths) if index != left_out and each == given]
        total += min(1.0, len(matching) / 3)
    return total / len(truths)


def patches(image: list[list[list[float]]], size: int) -> list[list[float]]:
    """Patches of an image [channel][row][column], row by row; pixels channel, row, column."""
    height, width = len(image[0]), len(image[0][0])
    return [
        [channel[top + y][left + x] for channel in image for y in range(size) for x in range(size)]
        for top in range(0, height, size)
        for left in range(0, width, size)
    ]


def squared_error(one: list[float], other: list[float]) -> float:
    """The mean of the squared differences."""
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)


def cosine_error(one: list[float], other: list[float]) -> float:
    """One minus the cosine of two vectors."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return 1 - product / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def nearest(vector: list[float], centres: list[list[float]]) -> int:
    """The centre whose direction is nearest to that of a vector."""
    return min(range(len(centres)), key=lambda index: cosine_error(vector, centres[index]))
