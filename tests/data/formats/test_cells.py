"""A cell gives the texts that its writer meant, whatever program wrote it."""

import datetime

import pytest

from evle.data.formats.cells import MAX_CHARACTERS, number_text, texts_of


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("a dog", ["a dog"]),
        ('["a dog", "a brown dog"]', ["a dog", "a brown dog"]),
        ("['a dog', 'a brown dog']", ["a dog", "a brown dog"]),  # str() of a list, as pandas writes it
        ("['a dog' 'a brown dog']", ["a dog", "a brown dog"]),  # str() of a numpy array
        ("['a dog'\n \"a dog's tail\"]", ["a dog", "a dog's tail"]),
        ("('a', 'b')", ["a", "b"]),
        ("array(['a dog', 'a cat'], dtype=object)", ["a dog", "a cat"]),  # repr() of a numpy array
        ("[nan, 'a dog', None]", ["a dog"]),
        ("[nan]", []),
        ("[none] of them", ["[none] of them"]),
        ("[{'answer': 'yes', 'answer_id': 1}, {'answer': 'no', 'answer_id': 2}]", ["yes", "no"]),
        ('{"raw": "a dog", "tokens": ["a", "dog"]}', ["a dog"]),
        ([{"raw": "a dog", "sentid": 3}], ["a dog"]),
        ({"answer": ["yes", "no"], "answer_confidence": ["maybe", "yes"]}, ["yes", "no"]),
        ("[a dog] on the beach", ["[a dog] on the beach"]),
        ("(laughing) a man", ["(laughing) a man"]),
        ('["Rex"] on the beach', ['["Rex"] on the beach']),
        ([None, float("nan"), "nan", "x"], ["x"]),
        ("nan", []),
        ("NULL", []),
        ("None", []),
        ("none", ["none"]),  # what annotators answer
        (["a dog", "None", "nil", "NA"], ["a dog"]),
        ("undefined", []),
        ("(null)", []),
        ("NONE", []),
        ("#NA", []),
        ("1.#QNAN", []),
        ("NA flag", ["NA flag"]),
        (7024521.0, ["7024521"]),
        (1e6, ["1000000"]),
        (0.5, ["0.5"]),
        (2, ["2"]),
        (b"caf\xc3\xa9", ["café"]),
        (datetime.date(2020, 1, 2), ["2020-01-02"]),
    ],
)
def test_texts_of_a_cell(cell, texts):
    assert texts_of(cell) == texts


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        (True, ["yes"]),
        ([True, False], ["yes", "no"]),
        ("NA", ["NA"]),
        (["None", "nil", "NONE"], ["None", "nil", "NONE"]),
        ("None", []),
        ("(null)", []),
        ([["two", "2"]], ["two", "2"]),
    ],
)
def test_an_answer_may_be_true_or_a_word_that_elsewhere_stands_for_no_value(cell, texts):
    assert texts_of(cell, answers=True) == texts


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({"en": "a dog"}, "a record of en has none of raw, caption"),
        ({"raw": "a", "caption": "b"}, "a record has the texts raw and caption; keep one of them"),
        ("['a dog', 'a brown", "looks like a list and cannot be read as one"),
        ("['a' 'b' ... 'c']", "looks like a list and cannot be read as one"),  # numpy leaves out the middle
        (b"\xff", "not UTF-8"),
        ("x" * (MAX_CHARACTERS + 1), "100,001 characters are more than the limit"),
        (float("inf"), "infinite"),
        (False, "false is no text"),
        (["a dog", True], "true is no text"),
        ([["a dog", "0.9"], ["b", "0.1"]], "a text with a number beside it"),
    ],
)
def test_a_cell_that_holds_no_text_is_refused_with_the_reason(cell, words):
    with pytest.raises(TypeError, match=words):
        texts_of(cell)


def test_lists_within_lists_end_in_no_traceback():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match="too deep to read"):
        texts_of(deep)
    with pytest.raises(TypeError, match="looks like a list"):
        texts_of("[[" * 20_000)


def test_an_id_is_written_without_the_point_that_pandas_adds():
    assert [number_text(each) for each in (7.0, 7, "7", 7.5)] == ["7", "7", "7", "7.5"]
