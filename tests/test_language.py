"""Everything that a user or a contributor reads is plain English: banned words have a better one.

The list is of habits that this project had; each entry names what to write instead.
"""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INSTEAD = {
    r"pictures?": "image",
    r"stands? twice|stand twice": "is duplicated, appears twice",
    r"go(es)? on with|going on with": "resume, continue",
    r"a line a \w+|a file a \w+|a row a \w+": "one line per row, one file per task",
    r"anew": "again",
    r"com(es?|ing) along": "is included, is bundled",
    r"(it|which|that|and) says so|is said(?! to)|are said(?! to)": "reports, prints, documents",
    r"each its own": "one per ..., its own",
    r"way down": "decay",
    r"mend(s|ed|ing)?": "fix",
    r"untold|is told|was told|are told": "given, not given",
    r"lies? in|lies? beside|lying in": "is in, is next to",
    r"must do for": "must be large enough for",
    r"so many (of|as)|as many as there are": "N, the same number of",
    r"of equally \w+ (ones|answers) the first": "ties are broken by order",
    r"has a say|have their say": "applies, is ignored when",
    r"has no effect where": "is ignored when",
    r"reckon(s|ed|ing)?": "estimate",
    r"for people": "name what it is for",
}
BANNED = {re.compile(rf"(?<![\w/`.\-]){words}(?![\w/`\-]|\.\w)", re.IGNORECASE): cure for words, cure in INSTEAD.items()}
DATA = ("src/evle/data/synthetic/",)
"""Files whose strings are sentences of a synthetic world, which are training data."""
ALLOWED = re.compile(r"""recipe `?pictures|`pictures(-vle)?`|runs/pictures|evle train pictures|"picture"|a picture of""")


def prose_of(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that people read: all of a page or recipe, comments and strings of code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return list(enumerate(text.splitlines(), 1))
    is_data = path.relative_to(ROOT).as_posix().startswith(DATA)
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_docstring = token.type == tokenize.STRING and token.string.startswith('"""')
        is_string = token.type == tokenize.STRING or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1)
        if token.type == tokenize.COMMENT or is_docstring or (is_string and not is_data):
            found += [(token.start[0] + number, line) for number, line in enumerate(token.string.split("\n"))]
    return found


FILES = sorted(
    [
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "src/evle/recipes").glob("*.yaml"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("*.md"),
        *(ROOT / "benchmarks").glob("*"),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "examples").rglob("*.py"),
    ]
)


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.is_file()], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_no_banned_words(path):
    wrong = []
    for number, line in prose_of(path):
        line = ALLOWED.sub("", line)
        for pattern, cure in BANNED.items():
            if match := pattern.search(line):
                wrong.append(f"{path.name}:{number}: {match[0]!r}; write: {cure}")
    assert not wrong, "\n".join(wrong)
