"""CSV and TSV tables as spreadsheets and pandas write them (RFC 4180, with `;` and other signs between columns)."""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evle.data.formats.text_files import MAX_LINE, encoding_of
from evle.errors import DataError, in_one_line

TAB = "\t"
DELIMITERS = (",", ";", TAB, "|")
MAX_NAME = 1000
"""Characters of the name of a column at most."""
NAMES = {",": "commas", ";": "semicolons", TAB: "tabs", "|": "bars"}

_SEPARATOR_LINE = re.compile(r'^"?sep=(.)"?\s*$')  # the first line that Excel writes and obeys
_WHOLE_FLOAT = re.compile(r"^-?\d{1,18}\.0$")
_WITH_LETTER = re.compile(r"""[^,;|"\t\r\n]{0,20}(?![\x00-\x7f])\w[^,;|"\t\r\n]{0,20}""")
FILE_ENDING = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif)$", re.IGNORECASE)


@dataclass(frozen=True)
class DelimitedForm:
    """How a table is written: its encoding, the sign between its columns, and lines before its header."""

    encoding: str
    delimiter: str
    skipped_lines: int = 0
    example: str = ""
    """Words with a letter beyond ASCII, where the encoding is a guess."""

    @property
    def description(self) -> str:
        """What is unusual about the form, "" for UTF-8 with commas."""
        names = {"cp1252": "Windows-1252", "utf-8": "", "utf-8-sig": ""}
        encoding = names.get(self.encoding, self.encoding.upper())
        return ", ".join(
            filter(None, [encoding, "" if self.delimiter == "," else f"{NAMES[self.delimiter]} between columns"])
        )


class ShortRow(dict[str, Any]):
    """A row with fewer fields than the header, as a spreadsheet writes one whose last cells are empty."""

    note = ""
    """What is wrong with the row where it lacks a field that is needed."""


def delimited_form(file: Path) -> DelimitedForm:
    """How the table in `file` is written. Raises DataError where its encoding cannot be known."""
    encoding = encoding_of(file, western=True)
    example = _example(file, encoding) if encoding == "cp1252" else ""
    usual = "\t" if file.suffix.lower() == ".tsv" else ","
    with open(file, encoding=encoding, newline="") as lines:
        first = lines.readline(MAX_LINE)
        if (named := _SEPARATOR_LINE.match(first)) is not None and named[1] in DELIMITERS:
            return DelimitedForm(encoding, named[1], 1, example)
    widths = {sign: _width(first, sign) for sign in DELIMITERS}
    if widths[usual] > 1 or max(widths.values()) == 1:
        return DelimitedForm(encoding, usual, example=example)
    return DelimitedForm(encoding, max(DELIMITERS, key=widths.__getitem__), example=example)


def _example(file: Path, encoding: str) -> str:
    with open(file, encoding=encoding, newline="") as lines:
        while line := lines.readline(MAX_LINE):
            if not line.isascii() and (found := _WITH_LETTER.search(line)):
                return found[0].strip()
    return ""


def _width(line: str, delimiter: str) -> int:
    try:
        return max(1, len(next(csv.reader([line], delimiter=delimiter), [])))
    except csv.Error:
        return 1


def read_delimited(file: Path) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """(line, row) of each row. A row that cannot be read right is a DataError that names it.

    The line is that on which the row begins. A cell such as "12.0" is the number 12.0: pandas writes whole numbers so
    in a column with a gap. Raises DataError for a header with a duplicate name.
    """
    form = delimited_form(file)
    with open(file, encoding=form.encoding, newline="") as text:
        for _ in range(form.skipped_lines):
            text.readline(MAX_LINE)
        reader = csv.reader(_lines(text, file), delimiter=form.delimiter, strict=True)
        header: list[str] | None = None
        while True:
            line = form.skipped_lines + reader.line_num + 1
            where = f"{file}:{line}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except UnicodeError as error:
                yield line, DataError(f"{where}: not {form.encoding} text ({in_one_line(error)}); save it as UTF-8")
                return
            except csv.Error as error:
                yield line, _unreadable(where, error)
                if header is None:
                    return
                continue
            if not any(cells):
                continue
            if header is None:
                header = _checked_header(file, cells, form.delimiter)
            elif len(cells) > len(header) and any(cells[len(header) :]):
                many = f"{len(cells)} fields where the header has {len(header)}"
                yield line, DataError(f"{where}: {many}; put quotes around texts with {NAMES[form.delimiter]}")
            elif unnamed := next((cell for name, cell in zip(header[1:], cells[1:]) if cell.strip() and not name), ""):
                yield (
                    line,
                    DataError(
                        f"{where}: {unnamed[:40]!r} is in a column without a name; name it in the header, or put "
                        f"quotes around texts with {NAMES[form.delimiter]}"
                    ),
                )
            elif swallowed := _swallowed_line(cells, form.delimiter):
                yield (
                    line,
                    DataError(
                        f"{where}: a quote opens here and takes in {swallowed!r}, which looks like a row of its own; "
                        "close the quote or double it"
                    ),
                )
            elif len(cells) < len(header):
                yield line, _short_row(where, cells, header, form.delimiter)
            else:
                yield line, {name: _value(cell) for name, cell in zip(header, cells) if name}


def _short_row(where: str, cells: list[str], header: list[str], delimiter: str) -> ShortRow | DataError:
    """A row with fewer fields than the header; a DataError where another sign stands between its missing ones."""
    row = ShortRow((name, _value(cell)) for name, cell in zip(header, cells) if name)
    row.note = f"{len(cells)} fields where the header has {len(header)}; add the missing ones, or correct what is "
    row.note += "between them"
    for sign in DELIMITERS[1:]:
        if sign != delimiter and sum(cell.count(sign) for cell in cells) == len(header) - len(cells):
            return DataError(f"{where}: {row.note} (it has {NAMES[sign]} too)")
    return row


def _lines(text: Any, file: Path) -> Iterator[str]:
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise DataError(f"{os.fspath(file)}: a line of more than {MAX_LINE >> 20} million characters; split it")
        yield line


def _unreadable(where: str, error: csv.Error) -> DataError:
    if "unexpected end of data" in str(error) or "expected after" in str(error) or "field larger" in str(error):
        return DataError(
            f"{where}: a quote opens here and is not closed where a field ends ({error}); close the quote, and write "
            'a quote inside of a quoted text as ""'
        )
    return DataError(f"{where}: not CSV ({error}); correct the line")


def _checked_header(file: Path, cells: list[str], delimiter: str) -> list[str]:
    names = [cell.lstrip("\ufeff").strip() for cell in cells]
    if values := [name for name in names if FILE_ENDING.search(name.split("#")[0]) or len(name) > MAX_NAME]:
        raise DataError(
            f"{file}: the first line holds {values[0][:40]!r} and no names of columns; write them there, such as "
            f"image{delimiter if delimiter != TAB else '<tab>'}caption"
        )
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        raise DataError(f"{file}: the column {repeated[0]!r} appears twice in the header; rename or remove one of them")
    return names


def _swallowed_line(cells: list[str], delimiter: str) -> str:
    """A line inside of a quoted field that looks like a row, or like the end of one, "" for none.

    It has several fields, one of which names an image, or as many as a row has, one of which has the form of this
    row's: "7" and "12", "a_7" and "a_12".
    """
    forms = [_form(cell) for cell in cells]
    for cell in cells:
        if "\n" not in cell and "\r" not in cell:
            continue
        for number, line in enumerate(cell.splitlines()):
            parts = [part.strip().strip('"') for part in line.split(delimiter)]
            if len(parts) < 2:
                continue
            alike = len(parts) == len(cells) and any(_form(each) == form != "" for each, form in zip(parts, forms))
            if any(map(FILE_ENDING.search, parts)) or (number and alike):
                return line[:60]
    return ""


def _form(cell: str) -> str:
    """A number or a name with a number, with 0 for the number; "" for what has none or is longer."""
    cell = cell.strip()
    return re.sub(r"\d+", "0", cell) if len(cell) < 40 and " " not in cell and re.search(r"\d", cell) else ""


def _value(cell: str) -> str | float:
    return float(cell) if _WHOLE_FLOAT.match(cell) else cell
