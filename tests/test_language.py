"""Everything that a user or a contributor reads is plain English: banned words have a better one.

The list is of habits that this project had; each entry names what to write instead.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INSTEAD = {
    r"pictures?": "image",
    r"stands? twice|stood twice": "is duplicated, appears twice",
    r"go(es)? on with|going on with|goes on from|goes? on where|went on with": "resume, continue",
    r"places? of (the|a|its|their) (\w+ )?(rows?|samples?|members?)|their places": "index, position, row",
    r"a line a \w+|a file a \w+|a row a \w+": "one line per row, one file per task",
    r"(set )?anew": "again, reset",
    r"com(e|es|ing) along|came along": "is included, is bundled",
    r"(it|which|that|this|and|who|page) says? (so|what|which|how)|(is|are|was|were) said(?! to)": (
        "reports, prints, documents"
    ),
    r"each its own|each their own": "one per ..., its own",
    r"way down": "decay",
    r"mend(s|ed|ing)?": "fix",
    r"untold|(is|are|was|were|being|been|as|when|if|where) told": "given, not given",
    r"(lies?|lay|lying) (in|beside|at|on|under|within)": "is in, is next to",
    r"must do for": "must be large enough for",
    r"so many of|(in|takes) as many|(twice|third|half) as many": "N, the same number of",
    r"of (the )?equally \w+ (\w+ )?the first": "ties are broken by order",
    r"may be missing": "is optional",
    r"ha(s|ve) (a|no) say|ha(s|ve) (its|their) say|has no effect where": "applies, is ignored when",
    r"reckon(s|ed|ing)?": "estimate",
    r"for people": "name what it is for",
}
"""What must not be written (a regular expression), and what to write instead."""
BANNED = {
    re.compile(rf"(?<![\w/`.\-])(?:{words})(?![\w/`\-]|\.\w)".replace(" ", r"\s+"), re.IGNORECASE): cure
    for words, cure in INSTEAD.items()
}
ALLOWED = re.compile(
    r"""recipe `?pictures|runs/pictures|evle train pictures|"picture"|a picture of|picture of a \{\}"""
)
"""The name of a recipe, and captions as people write them."""
DATA = "src/evle/data/synthetic/"
"""The folder whose strings are sentences of a synthetic world, which are training data."""


def prose_of(path: Path) -> list[tuple[int, str]]:
    """What people read in a file, with its first lines: all of a page or recipe; comments and strings of code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return [(1, text)]
    is_data = path.relative_to(ROOT).as_posix().startswith(DATA)
    return [
        *comments_of(text),
        *((line, words) for line, words, is_docstring in strings_of(text) if is_docstring or not is_data),
    ]


def comments_of(code: str) -> list[tuple[int, str]]:
    """The comments of a module, those on consecutive lines as one."""
    blocks: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type != tokenize.COMMENT:
            continue
        if blocks and blocks[-1][0] + blocks[-1][1].count("\n") + 1 == token.start[0]:
            blocks[-1] = (blocks[-1][0], f"{blocks[-1][1]}\n{token.string}")
        else:
            blocks.append((token.start[0], token.string))
    return blocks


def strings_of(code: str) -> list[tuple[int, str, bool]]:
    """The strings of a module that are no names, their first lines, and whether each is a docstring (stands alone)."""
    tree = ast.parse(code)
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        (node.lineno, node.value, id(node) in alone)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.isidentifier()
    ]


def banned_in(words: str, first_line: int = 1) -> list[str]:
    """One complaint per banned word in a text, with its line and what to write instead."""
    words = re.sub(r"\n[ ]*#", lambda match: match[0][:-1] + " ", words)  # a sentence may span lines of comment
    words = ALLOWED.sub(lambda match: " " * len(match[0]), words)
    return [
        f"line {first_line + words.count(chr(10), 0, match.start())}: '{' '.join(match[0].split())}'; write: {cure}"
        for pattern, cure in BANNED.items()
        for match in pattern.finditer(words)
    ]


FILES = sorted(
    path
    for pattern in ("*", "docs/**/*", "src/**/*", "benchmarks/**/*", "examples/**/*")
    for path in ROOT.glob(pattern)
    if path.suffix in (".md", ".cff", ".toml", ".py", ".yaml", ".sh", ".ipynb") and path.is_file()
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_banned_words(path):
    wrong = [complaint for line, words in prose_of(path) for complaint in banned_in(words, line)]
    assert not wrong, "\n".join([path.relative_to(ROOT).as_posix(), *wrong])


@pytest.mark.parametrize(
    "words",
    [
        "The picture's id.",
        "the id stands\n    twice",
        "# a run goes\n# on with its weights",
        "the split is\nsaid",
        "Written anew.",
        "it takes as many steps",
        "in as many steps",
    ],
)
def test_banned_words_are_seen_in_any_layout(words):
    assert banned_in(words)


@pytest.mark.parametrize(
    "words", ["recipe `pictures`", "evle train pictures", "`picture`", "is said to hold", "amend the commit"]
)
def test_names_and_other_words_are_no_banned_words(words):
    assert not banned_in(words)


def test_code_is_read_by_its_comments_and_strings(tmp_path):
    code = 'picture = 1  # a picture\n\n\ndef f():\n    """A picture."""\n    raise ValueError(f"picture {picture}")\n'
    assert comments_of(code) == [(1, "# a picture")]
    assert sorted(strings_of(code)) == [(5, "A picture.", True), (6, "picture ", False)]
