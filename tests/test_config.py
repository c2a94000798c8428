"""The configuration: YAML, merging, overrides and messages."""

import pytest
from pydantic import Field

from evle.config import Config, apply_overrides, dump_yaml, load_yaml, merge, parse_yaml
from evle.errors import ConfigError


class Optim(Config):
    lr: float = Field(1.0, gt=0)
    clip: float = 1.0


class Whole(Config):
    name: str
    optim: Optim = Optim()


def test_scientific_numbers_are_floats_and_no_is_a_word():
    tree = apply_overrides({}, ["a=1e-3", "b=no", "c=true", "d=[1, 2]", "e=", "f=-2.5E4", "g=012", "h=0x10"])
    assert tree == {"a": 1e-3, "b": "no", "c": True, "d": [1, 2], "e": None, "f": -25000.0, "g": 12, "h": 16}


def test_overrides_reach_into_lists_and_leave_the_original_alone():
    tree = {"train": [{"source": "a"}, {"source": "b"}]}
    changed = apply_overrides(tree, ["train.1.source=c", "new.deep.key=1"])
    assert changed == {"train": [{"source": "a"}, {"source": "c"}], "new": {"deep": {"key": 1}}}
    assert tree == {"train": [{"source": "a"}, {"source": "b"}]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("name.x=1", "below a single value"),
        ("list.7=1", "no position in a list of 1"),
        ("a={", "not valid YAML"),
    ],
)
def test_an_override_that_cannot_work_is_named(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"name": "x", "list": [1]}, [override])


def test_merge_is_deep_and_replaces_lists():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert merge(base, {"a": {"c": [3]}, "e": 5}) == {"a": {"b": 1, "c": [3]}, "d": 4, "e": 5}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 4}


def test_all_problems_are_reported_at_once_with_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        Whole.build({"optim": {"lr": -1, "clipp": 2}, "nam": "x"}, "recipe.yaml")
    message = str(caught.value)
    assert message.startswith("recipe.yaml: ")
    assert "name is missing" in message
    assert "optim.lr=-1: input should be greater than 0" in message
    assert "unknown key 'optim.clipp'; did you mean optim.clip?" in message
    assert "unknown key 'nam'; did you mean name?" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("tree", "hint"),
    [
        ({"lr": 1}, "unknown key 'lr'; did you mean optim.lr?"),
        ({"optim": {"name": 1}}, "unknown key 'optim.name'; did you mean name?"),
        ({"optm": {"lr": 1}}, "unknown key 'optm'; did you mean optim?"),
        ({"zzz": 1}, "unknown key 'zzz'; choose one of: name, optim"),
        ({"optim": {"zzz": 1}}, "unknown key 'optim.zzz'; choose one of: optim.lr, optim.clip"),
    ],
)
def test_an_unknown_key_is_looked_for_in_all_sections(tree, hint):
    with pytest.raises(ConfigError) as caught:
        Whole.build({"name": "x", **tree}, "r.yaml")
    assert str(caught.value) == f"r.yaml: {hint}"


def test_what_is_dumped_is_read_back(tmp_path):
    tree = {"precision": "no", "word": "1e-3", "lr": 1e-8, "truth": "true", "none": None, "pair": (1, 2), "empty": ""}
    (tmp_path / "c.yaml").write_text(dump_yaml(tree))
    assert load_yaml(tmp_path / "c.yaml") == {**tree, "pair": [1, 2]}


@pytest.mark.parametrize(
    ("content", "message"), [("- 1\n", "not a list"), ("a: [\n", "not valid YAML"), ("a: 1\n b: 2\n", "line 2")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_yaml(tmp_path / "c.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read"):
        load_yaml(tmp_path / "nothing.yaml")


def test_a_duplicated_key_is_refused_with_its_line(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("seed: 1\noptim: {lr: 1}\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"a\.yaml line 3: not valid YAML \('seed' is duplicated\)"):
        load_yaml(path)
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert load_yaml(path)["b"] == {"x": 3, "y": 2}


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    "text",
    [
        *("!!int abc", "!!float abc", "!!timestamp foo", "!!bool maybe", "!!int ''", "!!float ''", "!!binary x==="),
        *("1" * 5000, "[" * 5000, "{a: " * 3000, "- " * 2000 + "1", "&a [*a]", "&a {b: *a}", BOMB),
        *("!!set {a}", "!!omap [a: 1]", "!!timestamp 2024-01-01", "!!binary aGk=", "!!python/object:os.system x"),
        *("!foo 1", "\x00", "? [1]\n: 2", "*a", "a: b: c", "!!timestamp 9999-99-99", "!!timestamp 0000-01-01"),
    ],
)
def test_yaml_that_cannot_be_a_configuration_is_one_line(tmp_path, text):
    with pytest.raises(ConfigError, match=r"^c\.yaml( line \d+)?: not valid YAML") as caught:
        parse_yaml(text, "c.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_bytes_that_are_no_text_are_one_line(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_yaml(tmp_path / "c.yaml")


def test_dates_and_underscores_stay_words():
    assert apply_overrides({}, ["a=2024-01-01", "b=2024_01"]) == {"a": "2024-01-01", "b": "2024_01"}


def test_infinite_numbers_are_refused():
    class Options(Config):
        lr: float

    with pytest.raises(ConfigError, match="lr=inf: input should be a finite number"):
        Options.build({"lr": float("inf")}, "here")
