"""CSV as spreadsheets and pandas write it is read right; what cannot be read right is named by line."""

import codecs

import pytest

from evle.data.formats.delimited import delimited_form, read_delimited
from evle.errors import DataError

TABLE = "image,caption\na.jpg,café\nb.jpg,two\n"
ROWS = [{"image": "a.jpg", "caption": "café"}, {"image": "b.jpg", "caption": "two"}]


def read(path, content, name="captions.csv"):
    file = path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_delimited(file))


def rows(path, content, name="captions.csv"):
    return [row for _, row in read(path, content, name)]


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode(),
        codecs.BOM_UTF8 + TABLE.encode(),
        TABLE.encode("cp1252"),
        TABLE.encode("utf-16"),
        TABLE.encode("utf-16-le"),
        TABLE.encode("utf-16-be"),
        TABLE.replace(",", ";").encode("cp1252"),  # Excel in Europe
        TABLE.replace(",", "\t").encode("utf-16"),  # Excel's "Unicode text"
        TABLE.replace(",", "| ").encode().replace(b"| ", b"|"),
        ("sep=;\n" + TABLE.replace(",", ";")).encode(),
        TABLE.replace("\n", "\r\n").encode(),
        ("\n\n" + TABLE).encode(),
    ],
)
def test_every_usual_form_holds_the_same_rows(tmp_path, content):
    assert rows(tmp_path, content) == ROWS


def test_an_unusual_form_is_described(tmp_path):
    read(tmp_path, TABLE.replace(",", ";").encode("cp1252"))
    assert delimited_form(tmp_path / "captions.csv").description == "Windows-1252, semicolons between columns"
    read(tmp_path, TABLE)
    assert delimited_form(tmp_path / "captions.csv").description == ""


@pytest.mark.parametrize("encoding", ["cp1251", "shift_jis", "mac_roman", "iso8859_2"])
def test_an_encoding_that_cannot_be_known_is_refused_by_line(tmp_path, encoding):
    words = {"cp1251": "собака у дома", "shift_jis": "犬がいる部屋", "mac_roman": "un café à l'été"}
    words["iso8859_2"] = "mała łódź żółta"
    with pytest.raises(DataError, match=r"captions\.csv:2: not UTF-8 text; save the file as UTF-8"):
        read(tmp_path, f"image,caption\na.jpg,{words[encoding]}\n".encode(encoding))


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1250", "egy nő kerékpáron ül, őszi erdő"),
        ("cp1250", "o fată"),
        ("cp1250", "Un bărbat merge, două fete stau pe o bancă lângă lac în pădure"),
        ("cp1257", "šuo bėga per žolę"),
        ("cp1254", "ağaç"),
        ("cp1254", "kış"),
        ("cp1254", "bir kadın ağacın altında"),
    ],
    ids=["hungarian", "romanian-word", "romanian", "lithuanian", "turkish-tree", "turkish-winter", "turkish"],
)
def test_another_latin_encoding_is_not_read_as_windows_1252(tmp_path, encoding, text):
    with pytest.raises(DataError, match=r"captions\.csv:2: not UTF-8 text; save the file as UTF-8"):
        read(tmp_path, f'image,caption\na.jpg,"{text}"\n'.encode(encoding))


@pytest.mark.parametrize(
    "text",
    [
        "João põe o chapéu na mãe e nas irmãs de manhã; maçãs, um fã, não",
        "Où est l'hôtel ? Août, goût sûr, bûche, dû, Noël, un garçon mange",
        "¿Qué es? El niño está en la montaña con su pingüino",
        "Ein Mädchen läuft über die Straße, größer",
        "Það er maður við húsið, ský yfir garðinum, þrír menn, dýr, íþróttir",
        "Kaks koera jooksevad põllul, poiss sõidab, õun, võtab",
        "Një grua është ulur në bankë, çanta, një fëmijë",
        "GARÇON, MANHÃ, LIMÕES, ÞÚ, AÐ",
    ],
    ids=["portuguese", "french", "spanish", "german", "icelandic", "estonian", "albanian", "capitals"],
)
def test_languages_of_windows_1252_are_read_and_an_example_is_shown(tmp_path, text):
    assert rows(tmp_path, f'image,caption\na.jpg,"{text}"\n'.encode("cp1252"))[0]["caption"] == text
    example = delimited_form(tmp_path / "captions.csv").example
    assert example in text
    assert not example.isascii()


def test_utf_8_with_one_damaged_letter_is_not_read_as_another_encoding(tmp_path):
    with pytest.raises(DataError, match=r"captions\.csv:3: not UTF-8"):
        read(tmp_path, "image,caption\na.jpg,café\nb.jpg,crème brûlée\n".encode().replace(b"\xc3\xa8", b"\xc3"))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('image,caption\na.jpg,"a 5 inch screen\nb.jpg,two\nc.jpg,three\n', 2),
        ('image,caption\na.jpg,one\nb.jpg,"two\nc.jpg,"three"\n', 3),
        ('image,caption\na.jpg,"one\nb.jpg,a tv of 32"\nc.jpg,three\n', 2),  # another row's inch mark closes it
        ('image,caption\na.jpg,"one \\"big\\" dog"\n', 2),
    ],
)
def test_an_unclosed_quote_is_named_by_the_line_where_it_opens(tmp_path, content, line):
    errors = [(number, row) for number, row in read(tmp_path, content) if isinstance(row, DataError)]
    assert errors[0][0] == line
    assert f"captions.csv:{line}: a quote opens here" in str(errors[0][1])


def test_a_quoted_text_may_hold_line_breaks_quotes_and_commas(tmp_path):
    content = 'image,caption\na.jpg,"one,\ntwo ""three"""\nb.jpg,"x"\n'
    assert read(tmp_path, content) == [
        (2, {"image": "a.jpg", "caption": 'one,\ntwo "three"'}),
        (4, {"image": "b.jpg", "caption": "x"}),
    ]


def test_a_duplicate_column_is_refused(tmp_path):
    with pytest.raises(DataError, match="the column 'caption' appears twice in the header"):
        read(tmp_path, "image,caption,caption \na.jpg,x,y\n")
    assert rows(tmp_path, ",image,\n0,a.jpg,\n") == [{"image": "a.jpg"}]  # the index column of pandas


def test_whole_numbers_of_a_column_with_a_gap_are_numbers(tmp_path):
    assert rows(tmp_path, "id,answer\n7.0,12.0\n8.0,\n") == [{"id": 7.0, "answer": 12.0}, {"id": 8.0, "answer": ""}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b" + b"x" * 50, r"is compressed \(gzip\); unpack it first"),
        (b"PK\x03\x04" + b"x" * 50, r"is compressed \(zip\)"),  # an Excel file that was renamed
        (b"image,caption\n" + b"x" * 5000 + b"\0", "holds zero bytes"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, content)
