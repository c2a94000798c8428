"""An independent judge of scenes: parses English sentences and decides from the things' coordinates alone whether
they are true.

It shares no code with `evle.data.synthetic.language`: relations and places come from x and y, phrases from its own
small grammar.
"""

import re

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon", "arrow", "drop")
SHAPE_PLURALS = {kind: kind + ("es" if kind == "cross" else "s") for kind in SHAPES}
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black")
PATTERNS = ("plain", "striped", "half-filled", "checked", "hollow")
NUMBERS = {
    "no": 0,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "a": 1,
    "an": 1,
}
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the centre", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
PLACE = "|".join(sorted((place for row in PLACES for place in row), key=len, reverse=True))
RELATION = "left of|right of|above|below"
CLEAR, DOUBT = 0.2, 0.1  # of the scene's width: from 0.2 on "left of" is clear, up to 0.1 nobody would say so


class Judge:
    """Knows the plurals of the kinds that may occur."""

    def __init__(self, plurals=None):
        self.plurals = SHAPE_PLURALS if plurals is None else plurals
        self.kinds = {**{kind: kind for kind in self.plurals}, **{many: kind for kind, many in self.plurals.items()}}

    # -- phrases

    def wanted(self, phrase):
        """The traits that a noun phrase asks for."""
        rest, traits = phrase.strip(), {}
        for field, values in (("size", ("small", "big")), ("pattern", PATTERNS), ("colour", COLOURS)):
            head, _, tail = rest.partition(" ")
            if head in values and tail:
                traits[field], rest = head, tail
        if rest not in ("thing", "things"):
            traits["kind"] = self.kinds[rest]
        return traits

    def matching(self, scene, phrase):
        traits = self.wanted(phrase)
        return [t for t in scene.things if all(getattr(t.traits, field) == value for field, value in traits.items())]

    def the(self, scene, phrase):
        found = self.matching(scene, phrase)
        assert len(found) == 1, f"{phrase!r} means {len(found)} things"
        return found[0]

    def count(self, scene, phrase):
        return len(self.matching(scene, phrase))

    # -- questions

    def answer(self, scene, question):
        """The answer to a question, or an AssertionError where the question has no single one."""
        question = question.removesuffix("?")
        for pattern, reply in (
            (rf"what (shape|colour) is the thing ({RELATION}) the (.+)", self.related),
            (r"what colour is the (.+)", lambda s, phrase: self.the(s, phrase).traits.colour),
            (r"which colour does the (.+) have", lambda s, phrase: self.the(s, phrase).traits.colour),
            (rf"what is ({RELATION}) the (.+)", lambda s, relation, phrase: self.related(s, "shape", relation, phrase)),
            (rf"what (?:shape )?is ({PLACE})", lambda s, place: self.at(s, place).traits.kind),
            (r"what (?:shape )?is the (.+)", lambda s, phrase: self.the(s, phrase).traits.kind),
            (r"what pattern does the (.+) have", lambda s, phrase: self.the(s, phrase).traits.pattern),
            (r"is the (.+) big or small", lambda s, phrase: self.the(s, phrase).traits.size),
            (r"what size is the (.+)", lambda s, phrase: self.the(s, phrase).traits.size),
            (r"where is the (.+)", lambda s, phrase: place_of(self.the(s, phrase))),
            (r"how many (.+) (?:are there|do you see)", lambda s, phrase: str(self.count(s, phrase))),
            (r"(?:is there|do you see) an? (.+)", lambda s, phrase: yes(self.count(s, phrase) > 0)),
            (rf"is the (.+) ({RELATION}) the (.+)", lambda s, a, r, b: yes(holds(self.the(s, a), r, self.the(s, b)))),
            (r"are there more (.+) than (.+)", lambda s, a, b: yes(self.count(s, a) > self.count(s, b))),
            (r"is the (.+) (bigger|smaller) than the (.+)", self.compared),
            (r"does the (.+) have the same (\w+) as the (.+)", self.same),
        ):
            if groups := self.match(pattern, question):
                return reply(scene, *groups)
        raise AssertionError(f"a question nobody understands: {question!r}")

    @staticmethod
    def match(pattern, text):
        found = re.fullmatch(pattern, text)
        return found.groups() if found else None

    def at(self, scene, place):
        found = [thing for thing in scene.things if place_of(thing) == place]
        assert len(found) == 1
        return found[0]

    def related(self, scene, asked, relation, phrase):
        other = self.the(scene, phrase)
        found = [thing for thing in scene.things if thing is not other and maybe(thing, relation, other)]
        assert len(found) == 1, f"{len(found)} things are {relation} the {phrase}"
        assert holds(found[0], relation, other)
        return found[0].traits.kind if asked == "shape" else found[0].traits.colour

    def compared(self, scene, a, word, b):
        one, other = self.the(scene, a), self.the(scene, b)
        assert max(one.diameter, other.diameter) > 1.4 * min(one.diameter, other.diameter), "too close to compare"
        return yes((one.diameter > other.diameter) == (word == "bigger"))

    def same(self, scene, a, word, b):
        field = "kind" if word == "shape" else word
        one, other = self.the(scene, a), self.the(scene, b)
        assert one is not other
        return yes(getattr(one.traits, field) == getattr(other.traits, field))

    # -- statements about pairs

    def true_of_pair(self, left, right, sentence):
        pair = (left, right)
        if found := self.match(r"both pictures show an? (.+)", sentence):
            return all(self.count(scene, found[0]) for scene in pair)
        if found := self.match(r"exactly one of the pictures shows an? (.+)", sentence):
            return sum(self.count(scene, found[0]) > 0 for scene in pair) == 1
        if found := self.match(r"there (?:is|are) exactly (\w+) (.+) in the two pictures together", sentence):
            return sum(self.count(scene, found[1]) for scene in pair) == NUMBERS[found[0]]
        if found := self.match(r"the (left|right) picture shows more (.+) than the (?:left|right) one", sentence):
            first, second = pair if found[0] == "left" else pair[::-1]
            return self.count(first, found[1]) > self.count(second, found[1])
        if found := self.match(r"the left picture shows an? (.+), and the right one shows an? (.+)", sentence):
            return self.count(left, found[0]) > 0 and self.count(right, found[1]) > 0
        if found := self.match(rf"in both pictures the (.+) is ({RELATION}) the (.+)", sentence):
            return all(holds(self.the(scene, found[0]), found[1], self.the(scene, found[2])) for scene in pair)
        if found := self.match(r"both pictures show the same number of (.+)", sentence):
            return self.count(left, found[0]) == self.count(right, found[0])
        raise AssertionError(f"a statement nobody understands: {sentence!r}")

    # -- captions

    def true_of(self, scene, caption):
        """Whether a caption is true; a list of things must be complete unless it names places."""
        if found := self.match(rf"the (.+) (?:is|stands) ({RELATION}) the (.+)", caption):
            return holds(self.the(scene, found[0]), found[1], self.the(scene, found[2]))
        if found := self.match(r"(\w+) things?, (\w+) of them (.+)", caption):
            phrase = found[2].removeprefix("an ").removeprefix("a ")
            phrase = phrase if phrase in self.kinds else phrase + " thing"
            return NUMBERS[found[0]] == len(scene.things) and NUMBERS[found[1]] == self.count(scene, phrase)
        if re.search(rf"({PLACE})$", caption):
            spots = re.findall(rf"(?:^| and )an? (.+?) ({PLACE})(?= and a|$)", caption)
            assert spots, caption
            return all(self.at(scene, place) in self.matching(scene, phrase) for phrase, place in spots)
        caption = re.sub(r"^(a picture of|a picture with|here we see|there is a picture of) ", "", caption)
        total = 0
        for part in re.split(r", | and ", caption):
            word, phrase = part.split(" ", 1)
            if self.count(scene, phrase) < NUMBERS[word]:
                return False
            total += NUMBERS[word]
        return total == len(scene.things)

    # -- choices with tags

    def true_choice(self, sample, question, choice):
        """Whether an answer or a rationale (words and tags) of a VCR sample is true."""
        scene = sample.image.scene
        tags = [scene.things[token[0]] for token in choice if isinstance(token, tuple)]
        text = spoken(choice)
        asked = [scene.things[token[0]] for token in question if isinstance(token, tuple)]
        if text == "[]":
            if found := self.match(rf"what is ({RELATION}) \[\] \?", spoken(question)):
                assert holds(tags[0], found[0], asked[0]) == maybe(tags[0], found[0], asked[0])
                return holds(tags[0], found[0], asked[0])
            field = self.match(r"which is the same (\w+) as \[\] \?", spoken(question))[0]
            field = "kind" if field in ("shape", "thing") else field
            return getattr(tags[0].traits, field) == getattr(asked[0].traits, field)
        if found := self.match(rf"\[\] is ({PLACE}) and \[\] is ({PLACE})", text):
            return [place_of(tag) for tag in tags] == list(found)
        if found := self.match(r"both \[\] and \[\] are (.+)", text):
            phrase = found[0] if found[0] in self.kinds else found[0] + " thing"
            return all(tag in self.matching(scene, phrase) for tag in tags)
        if found := self.match(rf"\[\] is the (.+) ({PLACE})", text):
            return tags[0] in self.matching(scene, found[0]) and place_of(tags[0]) == found[1]
        if found := self.match(r"it is an? (.+)", text):
            return asked[0].traits.kind == found[0]
        if found := self.match(r"it is the only (.+)", text):
            return self.matching(scene, found[0]) == asked
        if found := self.match(r"\[\] has its (\w+) , \[\] has its (\w+) and \[\] has its (\w+)", text):
            fields = ["kind" if word == "shape" else word for word in found]
            return all(getattr(t.traits, f) == getattr(asked[0].traits, f) for t, f in zip(tags, fields))
        raise AssertionError(f"a choice nobody understands: {text!r}")


def spoken(tagged):
    return " ".join("[]" if isinstance(token, tuple) else token for token in tagged)


def yes(truth):
    return "yes" if truth else "no"


def place_of(thing):
    return PLACES[int(thing.y * 3)][int(thing.x * 3)]


def holds(one, relation, other):
    """Clearly so."""
    return _offset(one, relation, other) > CLEAR


def maybe(one, relation, other):
    """So at a very exact look: what is not clearly so must not even be this, or it is in doubt."""
    return _offset(one, relation, other) > DOUBT


def _offset(one, relation, other):
    return {
        "left of": other.x - one.x,
        "right of": one.x - other.x,
        "above": other.y - one.y,
        "below": one.y - other.y,
    }[relation]
