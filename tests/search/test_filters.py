"""Filters of a search: every form of a condition holds or is refused, and none is lost."""

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pytest

from evle.errors import ConfigError, DataError
from evle.search import Filter

NS = 10**9
DAYS = ("1970-01-02", "2024-03-01", "2024-03-02")


def noon(day: str) -> int:
    return int(datetime.datetime.fromisoformat(f"{day}T12:00:00").timestamp()) * NS


TABLE = pa.table(
    {
        "path": [b"a.png", b"sub/b.png", b"sub/deep/c.png"],
        "mtime": [noon(day) for day in DAYS],
        "fields": [json.dumps({"year": year}) for year in (2018, 2019, 2020)],
    }
)


def passing(**options: object) -> list[int]:
    return Filter(**options).mask(TABLE).nonzero()[0].tolist()


def test_a_condition_holds_from_whatever_it_is_read():
    for where in ("year>=2019", ["year>=2019"], iter(["year>=2019"]), (text for text in ("year>=2019",))):
        assert passing(where=where) == [1, 2]


def test_a_day_may_be_a_date_and_any_year():
    assert passing(since=datetime.date(2024, 3, 2)) == passing(since="2024-03-02") == [2]
    assert passing(until=datetime.date(2024, 3, 1)) == [0, 1]
    assert passing(since="0001-01-01") == passing(until="9999-12-31") == [0, 1, 2]
    assert passing(until="0001-01-01") == passing(since="9999-12-31") == []


@pytest.mark.parametrize("folder", ["", ".", "./", "/", Path(".")])
def test_the_root_itself_leaves_no_image_out(folder):
    assert passing(folder=folder) == [0, 1, 2]


@pytest.mark.parametrize("folder", ["sub/deep", "./sub/deep/", "sub//deep", "sub/./deep", Path("sub/deep")])
def test_a_folder_is_one_folder_however_it_is_written(folder):
    assert passing(folder=folder) == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": 5}, "folder=5 is not a path"),
        ({"folder": None}, "folder=None is not a path"),
        ({"since": 2024}, "since='2024' is not a date"),
        ({"where": None}, "None is no text"),
        ({"where": [5]}, "text 0 is a value of type int"),
        ({"where": "year"}, "where='year' is not a condition"),
    ],
)
def test_what_is_no_filter_is_one_line(options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        Filter(**options)
