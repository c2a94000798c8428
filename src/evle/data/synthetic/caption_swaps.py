"""Captions written by people, each with a swapped form that differs in order, attribute, relation or count only.

The captions are chosen so that the words alone do not tell which of the two is true: people write "a red apple" more
often than "a blue apple", and a model that has read captions knows that without any image.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from evle.data.samples import CaptionSample, MadeSamples, Swap, readable
from evle.data.synthetic import text_alone
from evle.data.synthetic.drawing import COLOURS
from evle.data.synthetic.language import NUMBERS, a
from evle.errors import DataError

_ATTRIBUTES = {*COLOURS, "white", "grey", "gray", "silver", "golden"}
_ATTRIBUTES |= {"big", "small", "large", "little", "tall", "short", "old", "young", "wooden", "plastic", "metal"}
_ATTRIBUTES |= {"empty", "full", "open", "closed", "wet", "dry"}
_COUNTS = {*NUMBERS[2:], "ten", *map(str, range(2, 11))}
_OPPOSITES = {"left": "right", "above": "below", "over": "under", "inside": "outside", "in front of": "behind"}
_AXES = {word: word for word in _OPPOSITES} | {"over": "above"}
"""One word for each direction in which a relation may point."""
_OPPOSITES |= {other: one for one, other in _OPPOSITES.items()}
_JOINING = {"and", "or", "to", "by", "with"}
"""Words between two attributes, or two numbers, of the same thing."""
_WORDS = re.compile(r"in front of|[\w'-]+|[^\w\s]+|\s+", re.IGNORECASE)
_NOUN = r"((?:an?|the) [\w' -]+?)"
_AROUND = re.compile(rf"{_NOUN}( (?:is |are )?(?:to the )?)(in front of|\w+)( of)? {_NOUN}(\.?)", re.IGNORECASE)
_PLURALS = {"people", "men", "women", "children", "feet", "teeth", "geese", "mice", "police", "sheep"}
_SINGULARS = ("ss", "us", "is")
"""Endings of words that end in s and are one thing, as a rule."""


class Swapped(NamedTuple):
    """A caption's swapped form, the two words that it exchanges, and the direction in which they are related ("" if
    they are not): captions with the same words the other way round balance it."""

    caption: str
    words: tuple[str, str]
    axis: str = ""

    def opposite(self) -> tuple[str, str, str]:
        """What the caption that balances this one has."""
        return (*self.words[::-1], self.axis)


def swapped_caption(caption: str, type_: str) -> Swapped | None:
    """The caption with one swap of a type, or None if nothing can be swapped without another mistake in the sentence.

    Two different attributes or numbers of two things are exchanged; a relation becomes its opposite. "order" exchanges
    the nouns on both sides of a relation, and the articles stay; the words of "below" are named as those of "above" the
    other way round.

    >>> swapped_caption("A red car behind an orange bus.", "attribute").caption
    'An orange car behind a red bus.'
    >>> swapped_caption("a cat above the table", "order")
    Swapped(caption='a table above the cat', words=('cat', 'table'), axis='above')
    """
    words = _WORDS.findall(caption)
    if type_ in ("attribute", "count"):
        return _exchanged(words, _ATTRIBUTES if type_ == "attribute" else _COUNTS)
    lower = [word.lower() for word in words]
    at = [index for index, word in enumerate(lower) if word in _OPPOSITES]
    if len(at) != 1:
        return None
    word = lower[at[0]]
    if word in ("left", "right") and _next_word(lower, at[0]) != "of":
        return None  # the man left the house
    if type_ == "relation":
        words[at[0]] = _like(_OPPOSITES[word], words[at[0]])
        return Swapped("".join(words), (word, _OPPOSITES[word]))
    return _other_way_round(caption, word)


def _exchanged(words: list[str], known: set[str]) -> Swapped | None:
    lower = [word.lower() for word in words]
    at = [index for index, word in enumerate(lower) if word in known]
    if len(at) != 2 or lower[at[0]] == lower[at[1]]:
        return None
    if not [word for word in lower[at[0] + 1 : at[1]] if word.isalpha() and word not in _JOINING]:
        return None  # of one thing: a white and black cat is a black and white cat
    if not all(_next_word(lower, index).isalpha() for index in at):
        return None  # a number or attribute without a thing, such as the time of day
    for index, other in zip(at, reversed(at), strict=True):
        words[index] = _like(lower[other], words[index])
        if index >= 2:
            words[index - 2] = _with_article(words[index - 2], lower[other]).split()[0]
    return Swapped("".join(words), (lower[at[0]], lower[at[1]]))


def _other_way_round(caption: str, word: str) -> Swapped | None:
    match = _AROUND.fullmatch(caption)
    if match is None or match[3].lower() != word:
        return None
    verb = next((each for each in ("is", "are") if f" {each} " in match[2].lower()), "")
    if verb and any(_is_plural(noun) != (verb == "are") for noun in (match[1], match[5])):
        return None  # the dogs are above the car
    (one, its), (other, others) = (noun.split(" ", 1) for noun in (match[1], match[5]))
    first, second = _with_article(one, others), _with_article(other, its)
    swapped = f"{first}{match[2]}{match[3]}{match[4] or ''} {second}{match[6]}"
    heads = (match[1].split()[-1].lower(), match[5].split()[-1].lower())
    if word not in _AXES:
        word, heads = _OPPOSITES[word], heads[::-1]
    return Swapped(swapped, heads, _AXES[word])


def _next_word(lower: list[str], index: int) -> str:
    """The word after the one at `index`, behind a blank; empty at the end and before a mark."""
    return lower[index + 2] if lower[index + 1 : index + 2] == [" "] and index + 2 < len(lower) else ""


def _with_article(article: str, noun: str) -> str:
    """`noun` after `article`, which is a or an as the noun asks for."""
    if article.lower() in ("a", "an"):
        article = _like(a(noun).split()[0], article)
    return f"{article} {noun}"


def _like(word: str, other: str) -> str:
    """`word` with a capital where `other` has one."""
    return word[:1].upper() + word[1:] if other[:1].isupper() else word


def _is_plural(noun: str) -> bool:
    article, *_, head = noun.lower().split()
    if article in ("a", "an"):
        return False
    return head in _PLURALS or (head.endswith("s") and not head.endswith(_SINGULARS))


class CaptionSwaps(MadeSamples):
    """Captions of a source with a swapped form that words alone do not tell from the true one. Created by `swaps`.

    Every caption has a partner in which the same two words occur the other way round. Of these, pairs are left out
    until `text_alone`, a reader of the words fitted on other captions, tells the true caption as often as chance does.
    """

    text_alone: float
    """Percent of the captions that this reader tells from their swapped form; about 50."""

    def __init__(self, source: Sequence[CaptionSample], split: str, count: int, types: tuple[str, ...]):
        self.source, self.split, self.types = source, split, types
        pool: list[_Candidate] = []
        kept: list[_Candidate] = []
        wanted, candidates, alone = 2 * count, self._candidates(), _Waiting(list)
        while len(kept) < count:
            pool += _partners(candidates, wanted - len(pool), alone)
            kept, self.text_alone = _not_guessed(pool)
            if len(pool) < wanted:
                break
            wanted *= 2
        if not kept:
            raise DataError(
                "no two captions have swaps that balance each other (such as 'a red car and a blue bus' and 'a blue cup"
                f" and a red plate') in split {split!r}, or words alone tell the true ones; give more captions, or "
                f"other types than {', '.join(types)}"
            )
        self.left_out = len(pool) - len(kept)
        self._chosen = sorted(each.at for each in kept[: count - count % 2])
        facts = repr((getattr(source, "fingerprint", ""), count, types, self._chosen))
        self.fingerprint = hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()

    def _candidates(self) -> Iterator["_Candidate"]:
        for index in range(len(self.source)):
            for sample in readable(self.source, [index]):
                for number, caption in enumerate(sample.captions):
                    found = ((type_, swapped_caption(caption, type_)) for type_ in self.types)
                    type_, swap = next(((type_, swap) for type_, swap in found if swap is not None), ("", None))
                    if swap is not None:
                        yield _Candidate((index, number, type_), caption, swap)

    def __len__(self) -> int:
        return len(self._chosen)

    def at(self, index: int) -> Any:
        row, number, type_ = self._chosen[index]
        sample = self.source[row]
        swap = swapped_caption(sample.captions[number], type_)
        assert swap is not None, "chosen captions have a swap"
        key = f"{sample.key}#{number}"
        return CaptionSample(
            key,
            sample.image,
            (sample.captions[number],),
            swap=Swap(swap.caption, type_, None, key),
            match_id=sample.key,
        )

    def describe(self) -> dict[str, Any]:
        """Plain facts for a report."""
        return {
            "source": "swaps of captions",
            "split": self.split,
            "samples": len(self),
            "types": ", ".join(self.types),
            "right by words alone (%)": round(self.text_alone, 1),
            "left out, as words give them away": self.left_out,
        }


class _Candidate(NamedTuple):
    at: tuple[int, int, str]
    caption: str
    swap: Swapped


_Waiting = defaultdict[tuple[str, ...], list[_Candidate]]
"""Candidates without a partner yet, by their type, words and direction."""


def _partners(candidates: Iterator[_Candidate], count: int, alone: _Waiting) -> list[_Candidate]:
    """Candidates in pairs, one after the other, of which each has the other's two words the other way round: `count` of
    them, or all that there are. Those without a partner are added to `alone`."""
    chosen: list[_Candidate] = []
    for each in candidates:
        type_ = each.at[2]
        if partners := alone[type_, *each.swap.opposite()]:
            chosen += [partners.pop(0), each]
            if len(chosen) >= count:
                break
        else:
            alone[type_, *each.swap.words, each.swap.axis].append(each)
    return chosen


def _not_guessed(pool: list[_Candidate]) -> tuple[list[_Candidate], float]:
    """Partners of `pool` that words alone do not tell, and the percentage that they do tell.

    A caption that is another one's swapped form balances it in every word; only the others have to be chosen.
    """
    whole, others = _mirrored(pool)
    kept = _partners(iter(others), len(others), _Waiting(list))
    for _ in range(text_alone.MOST_ROUNDS):
        margins = _margins(kept)
        if text_alone.is_at_chance(margins):
            break
        stay = text_alone.balanced(margins)
        kept = _partners((each for each, stays in zip(kept, stay, strict=True) if stays), len(kept), _Waiting(list))
    return whole + kept, text_alone.share_right(_margins(whole + kept))


def _mirrored(pool: list[_Candidate]) -> tuple[list[_Candidate], list[_Candidate]]:
    """The captions that are each other's swapped forms, in pairs, and all other candidates."""
    waiting: dict[tuple[str, str], list[_Candidate]] = defaultdict(list)
    whole: list[_Candidate] = []
    for each in pool:
        if partners := waiting[each.swap.caption.lower(), each.at[2]]:
            whole += [partners.pop(0), each]
        else:
            waiting[each.caption.lower(), each.at[2]].append(each)
    paired = {each.at for each in whole}
    return whole, [each for each in pool if each.at not in paired]


def _margins(pool: list[_Candidate]) -> np.ndarray:
    groups = [index // 2 for index in range(len(pool))]
    return text_alone.cross_fitted([(each.caption, each.swap.caption) for each in pool], groups)
