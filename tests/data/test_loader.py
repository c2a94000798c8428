"""What a run sees is a function of seed, epoch and sample key: not of workers, ranks, or where it was interrupted."""

import gc
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evle.data.loader import Loader, epoch_order, sample_rng, worker_death
from evle.data.samples import CaptionSample, hash_samples
from evle.errors import DataError, SampleError


def samples(number):
    return [CaptionSample(f"k{i}", b"", (f"caption {i}",)) for i in range(number)]


class Features:
    """(key, a random number); SampleError for the keys in `bad`. A class, so that worker processes can receive it."""

    def __init__(self, bad=()):
        self.bad = set(bad)

    def __call__(self, sample, rng):
        if sample.key in self.bad:
            raise SampleError(f"{sample.key}.jpg: damaged")
        return sample.key, float(rng.random())


def collate(features):
    return {"keys": [key for key, _ in features], "numbers": torch.tensor([number for _, number in features])}


def rows(batches):
    return [[*zip(batch["keys"], batch["numbers"].tolist())] for batch in batches]


def loader(number=23, bad=(), **options):
    return Loader(samples(number), Features(bad), collate, **{"batch_size": 4, "seed": 5, **options})


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 6), st.integers(1, 4), st.booleans(), st.integers(0, 3), st.integers(0, 2**31)
)
def test_ranks_share_the_batches_that_one_process_sees(number, batch_size, world, shuffle, epoch, seed):
    common = {"seed": seed, "shuffle": shuffle}
    alone = rows(loader(number, batch_size=batch_size * world, **common).batches(epoch))
    ranks = [
        rows(loader(number, batch_size=batch_size, rank=rank, world_size=world, **common).batches(epoch))
        for rank in range(world)
    ]
    assert {len(each) for each in ranks} == {len(alone)}
    for place, batch in enumerate(alone):
        parts = [each[place] for each in ranks]
        if len(batch) >= world:
            assert sorted(row for part in parts for row in part) == sorted(batch)
        else:  # filled up, so that no rank stands without a batch
            assert {row for part in parts for row in part} >= set(batch)
            assert [len(part) for part in parts] == [1] * world


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 20), st.booleans(), st.sets(st.integers(0, 59)))
def test_a_run_goes_on_where_it_was_interrupted(number, batch_size, start, drop_last, bad):
    bad = {f"k{i}" for i in bad if i < number - 1}
    if drop_last and number < batch_size:
        return
    make = lambda: loader(number, bad, batch_size=batch_size, drop_last=drop_last)  # noqa: E731
    assert rows(make().batches(2, start)) == rows(make().batches(2))[start:]


def test_workers_change_nothing_and_live_on_between_epochs():
    alone, helped = loader(bad=["k3"]), loader(bad=["k3"], num_workers=2)
    for epoch in (0, 1):
        assert rows(helped.batches(epoch)) == rows(alone.batches(epoch))
    interrupted = helped.batches(2)
    next(interrupted)
    assert rows(helped.batches(2, 3)) == rows(alone.batches(2))[3:]
    assert helped.skipped == ["k3.jpg: damaged"]


def test_the_order_differs_between_epochs_and_seeds_and_is_kept_without_shuffling():
    orders = [epoch_order(50, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(50)) for order in orders)
    keys = [key for batch in rows(loader(shuffle=False).batches(7)) for key, _ in batch]
    assert keys == [f"k{i}" for i in range(23)]


def test_every_sample_is_seen_once_an_epoch():
    keys = [key for batch in rows(loader().batches(0)) for key, _ in batch]
    assert sorted(keys) == sorted(f"k{i}" for i in range(23))
    assert loader().num_batches == 6
    assert loader(drop_last=True).num_batches == 5


def test_the_randomness_of_a_sample_depends_on_its_key_epoch_and_seed():
    draws = {sample_rng(*each).random() for each in ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 0, "ä"))}
    assert len(draws) == 5
    assert sample_rng(0, 0, "a").random() == sample_rng(0, 0, "a").random()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_global_generators_are_left_alone(num_workers):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(loader(num_workers=num_workers).batches(0))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_sample_is_left_out_and_named_once(num_workers):
    made = loader(bad=["k3", "k7"], num_workers=num_workers)
    for epoch in (0, 1):
        keys = [key for batch in rows(made.batches(epoch)) for key, _ in batch]
        assert sorted(keys) == sorted({f"k{i}" for i in range(23)} - {"k3", "k7"})
    assert sorted(made.skipped) == ["k3.jpg: damaged", "k7.jpg: damaged"]


def test_a_training_batch_of_unreadable_samples_takes_the_next_readable_one():
    made = loader(6, bad=["k0", "k1", "k2"], batch_size=1)
    batches = rows(made.batches(0))
    assert len(batches) == made.num_batches == 6
    assert {key for batch in batches for key, _ in batch} == {"k3", "k4", "k5"}


def test_an_evaluation_batch_of_unreadable_samples_is_left_out():
    made = loader(6, bad=["k2", "k3"], batch_size=2, shuffle=False)
    assert [[key for key, _ in batch] for batch in rows(made.batches(0))] == [["k0", "k1"], ["k4", "k5"]]


def test_an_evaluation_batch_of_unreadable_samples_is_filled_where_other_processes_wait_for_it():
    number, bad = 200, {f"k{i}" for i in range(200) if 2 <= i < 190 and i % 2 == 0} | {"k0", "k198"}
    ranks = [loader(number, bad, batch_size=2, shuffle=False, rank=rank, world_size=2) for rank in range(2)]
    parts = [rows(made.batches(0)) for made in ranks]
    assert [len(part) for part in parts] == [ranks[0].num_batches] * 2
    keys = [key for part in parts for batch in part for key, _ in batch]
    assert set(keys) == {f"k{i}" for i in range(number)} - bad
    assert {key for batch in parts[0][:47] for key, _ in batch} == {"k1"}  # the first that can be read


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_data_set_that_cannot_be_read_at_all_stops_with_the_first_reason(shuffle):
    made = loader(6, bad=[f"k{i}" for i in range(6)], shuffle=shuffle)
    with pytest.raises(DataError, match=r"^none of 6 samples could be read; the first: k\d\.jpg: damaged; `evle data"):
        list(made.batches(0))


class Broken(Features):
    def __call__(self, sample, rng):
        raise DataError("captions.jsonl:3: broken")


def test_an_error_of_ours_arrives_from_a_worker_as_it_was_raised():
    made = Loader(samples(4), Broken(), collate, batch_size=2, seed=0, num_workers=1)
    with pytest.raises(DataError, match=r"^captions.jsonl:3: broken$"):
        list(made.batches(0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"number": 0}, "holds no samples"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"number": 3, "drop_last": True}, "3 samples do not fill one batch of 4; lower the batch size"),
    ],
)
def test_an_impossible_loader_is_refused(options, words):
    with pytest.raises(DataError, match=words):
        loader(**options)


def dies_at_c(sample, rng):
    if sample.key == "c" and torch.utils.data.get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
    return sample.key


def test_a_killed_data_worker_is_one_line_with_the_cure():
    four = [CaptionSample(key, b"", ("x",)) for key in "abcd"]
    loader = Loader(four, dies_at_c, list, batch_size=1, seed=0, shuffle=False, num_workers=1)
    with pytest.raises(
        DataError, match=r"a data worker died \(DataLoader worker .*lower num_workers or the batch size"
    ):
        list(loader.batches(0))
    assert worker_death(RuntimeError("something else")) is None


def _slow_features(sample, rng):
    if sample.key == "sample-5":
        time.sleep(3)
    return sample.key


def test_a_worker_whose_batch_does_not_come_is_named(monkeypatch, caplog):
    monkeypatch.setattr("evle.data.loader.SLOW_SECONDS", 0.4)
    samples = [CaptionSample(f"sample-{number}", b"", ("x",)) for number in range(8)]
    loader = Loader(samples, _slow_features, list, batch_size=1, seed=0, shuffle=False, num_workers=2)
    assert len(list(loader.batches(epoch=0, start=2))) == 6
    pids = [worker.pid for worker in loader._workers._iterator._workers]
    # Batches 2, 3, 4, 5 are dealt out to the workers 0, 1, 0, 1.
    assert f"for batch 5 of epoch 0, which data worker 1 (process {pids[1]}) prepares" in caplog.text
    assert not any(f"batch {number} " in caplog.text for number in (2, 3, 4, 6, 7))


def test_the_hash_of_the_data_sees_replaced_images(tmp_path):
    def samples():
        return [CaptionSample(str(number), str(tmp_path / f"{number}.png"), ("x",)) for number in range(30)]

    for number in range(30):
        (tmp_path / f"{number}.png").write_bytes(b"abc")
        os.utime(tmp_path / f"{number}.png", (1, 1))
    before = hash_samples({"train": samples()})
    assert hash_samples({"train": samples()}) == before
    (tmp_path / "17.png").write_bytes(b"abcd")
    os.utime(tmp_path / "17.png", (1, 1))
    other_size = hash_samples({"train": samples()})
    (tmp_path / "17.png").write_bytes(b"abc")
    os.utime(tmp_path / "17.png", (2, 2))
    other_time = hash_samples({"train": samples()})
    (tmp_path / "17.png").unlink()
    assert len({before, other_size, other_time, hash_samples({"train": samples()})}) == 4
    drawn = [CaptionSample("a", b"bytes", ("x",))]
    assert hash_samples({"train": drawn}) == hash_samples({"train": drawn})


def _collects_garbage(sample, rng):
    sys.unraisablehook = lambda found: os.write(2, f"{found.exc_value}".encode())  # pytest's own would keep silent
    gc.collect()
    return sample.key


def test_workers_do_not_complain_of_those_of_a_loader_before(capfd):
    gc.disable()  # the memory of the loader before is freed by the collection below, no sooner
    try:
        ended = loader(num_workers=1)
        list(ended.batches(0))
        ended.cycle = ended
        del ended
        list(Loader(samples(1), _collects_garbage, list, batch_size=1, seed=0, num_workers=1).batches(0))
    finally:
        gc.enable()
    assert capfd.readouterr().err == ""
