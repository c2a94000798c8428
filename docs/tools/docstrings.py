"""A griffe extension: docstrings as the reference shows them.

Doctests become fenced code, so that Markdown does not read them as links. Attributes that share a description
("width, height: in pixels") stay together, where griffe would read the second name as the type of the first.
"""

import re
from typing import Any

from griffe import Extension, Object

DOCTEST = re.compile(r"(?:^[ \t]*>>> .*\n?(?:^[ \t]*\S.*\n?)*)", re.MULTILINE)
SHARED = re.compile(r"^ +[a-z_]\w*(?:, [a-z_]\w*)+(?=: )", re.MULTILINE)
NO_BREAK_SPACE = "\u00a0"


class Docstrings(Extension):
    """Put each run of doctest lines between fences, and join names that share a description."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            fenced = DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", obj.docstring.value)
            obj.docstring.value = SHARED.sub(lambda names: names[0].replace(", ", f",{NO_BREAK_SPACE}"), fenced)
