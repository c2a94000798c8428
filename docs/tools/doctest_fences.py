"""A griffe extension: doctests in docstrings become fenced code, so that Markdown does not read them as links."""

import re
from typing import Any

from griffe import Extension, Object

DOCTEST = re.compile(r"(?:^[ \t]*>>> .*\n?(?:^[ \t]*\S.*\n?)*)", re.MULTILINE)


class DoctestFences(Extension):
    """Put each run of doctest lines between fences."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            fenced = DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", obj.docstring.value)
            obj.docstring.value = fenced
