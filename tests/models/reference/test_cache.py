"""Stored values are read back bit for bit, completely or not at all."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_align.models.reference import cache as reference_cache
from lit_align.models.reference.cache import Keys, ReferenceCache, Values, sequence_keys
from lit_align.types import PairBatch
from tests.conftest import pair_batch


def filled(folder: Path, count: int = 50, seed: int = 0) -> tuple[ReferenceCache, Keys, list[Values]]:
    cache = ReferenceCache(folder, {"model": "m"})
    random = np.random.default_rng(seed)
    keys = random.integers(0, 2**63, (count, 2)).astype(np.uint64)
    values: list[Values] = [random.normal(size=1 + place % 7).astype(np.float32) for place in range(count)]
    for place in range(count):
        cache.add(keys[place : place + 1], values[place : place + 1])
        if place % 20 == 0:
            cache.flush()
    cache.flush()
    return cache, keys, values


def padded(values: list[Values], width: int) -> Values:
    return np.array([np.pad(found, (0, width - len(found))) for found in values], np.float32)


class TestKeys:
    def test_padding_place_and_neighbours_do_not_enter(self, batch: PairBatch) -> None:
        alone = pair_batch([[1, 8]], [([17, 18, 19, 20, 2], [21, 2])], pad=9)
        assert (sequence_keys(batch)[2:4] == sequence_keys(alone)).all()

    def test_ids_their_order_and_what_is_scored_do(self, batch: PairBatch) -> None:
        before = sequence_keys(batch)
        ids, mask = batch.input_ids.clone(), batch.mask.clone()
        ids[0, 0, 0] += 1
        ids[0, 1, [0, 1]] = ids[0, 1, [1, 0]]
        mask[1, 0, 2] = False
        changed = sequence_keys(replace(batch, input_ids=ids, mask=mask))
        assert (changed != before).any(1).tolist() == [True, True, True, False, False, False]

    def test_a_longer_prompt_is_not_a_shorter_response(self) -> None:
        one, other = (
            sequence_keys(pair_batch([prompt], [(response, [4])]))[0]
            for prompt, response in (([1, 2], [3]), ([1], [2, 3]))
        )
        assert (one != other).any()


class TestStore:
    def test_it_reads_what_was_added_whatever_the_order(self, tmp_path: Path) -> None:
        _, keys, values = filled(tmp_path)
        again = ReferenceCache(tmp_path, {"model": "m"})
        order = np.random.default_rng(1).permutation(len(keys))
        assert len(again) == 50
        assert again.known(keys).all()
        assert (again.read(keys[order], 9) == padded([values[place] for place in order], 9)).all()

    def test_what_was_not_added_is_not_known(self, tmp_path: Path) -> None:
        cache, keys, _ = filled(tmp_path)
        cache.load()
        other = keys.copy()
        other[:, 1] += 1
        assert not cache.known(other).any()
        assert not ReferenceCache(tmp_path, {"model": "n"}).known(keys).any()

    def test_keys_with_the_same_first_half_are_kept_apart(self, tmp_path: Path) -> None:
        cache = ReferenceCache(tmp_path, {})
        keys = np.array([[5, 9], [5, 2], [5, 4], [7, 1]], np.uint64)
        cache.add(keys, [np.full(1, place, np.float32) for place in range(4)])
        cache.flush()
        cache.load()
        assert cache.read(keys, 1).flatten().tolist() == [0, 1, 2, 3]
        assert cache.known(np.array([[5, 3], [5, 10], [4, 9], [8, 0]], np.uint64)).tolist() == [False] * 4

    def test_a_sequence_that_two_processes_added_counts_once(self, tmp_path: Path) -> None:
        caches = [ReferenceCache(tmp_path, {}) for _ in range(2)]
        for place, cache in enumerate(caches):
            cache.add(np.array([[1, 1], [2, place]], np.uint64), [np.ones(2, np.float32)] * 2)
            cache.flush()
        caches[0].load()
        assert len(caches[0]) == 3

    def test_float64_stays_float64(self, tmp_path: Path) -> None:
        cache = ReferenceCache(tmp_path, {}, "float64")
        cache.add(np.array([[1, 1]], np.uint64), [np.array([1 / 3])])
        cache.flush()
        cache.load()
        assert cache.read(np.array([[1, 1]], np.uint64), 1)[0, 0] == 1 / 3

    def test_a_folder_that_others_may_write_to_is_refused(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        with pytest.raises(PermissionError, match=r"model\.reference\.cache .*: others may write"):
            ReferenceCache(tmp_path, {})


class TestDamage:
    @pytest.mark.fault("D25")
    @pytest.mark.parametrize(
        "change", [lambda content: content[:-40], lambda content: content[:99] + b"!" + content[100:]]
    )
    def test_a_damaged_shard_is_thrown_away_and_the_others_are_used(self, tmp_path: Path, change: object) -> None:
        cache, keys, values = filled(tmp_path)
        shard = sorted(cache.folder.glob("*.arrow"))[0]
        assert callable(change)
        shard.write_bytes(change(shard.read_bytes()))
        with pytest.warns(UserWarning, match="are damaged; computing them again"):
            cache.load()
        known = cache.known(keys)
        assert not shard.exists()
        assert 0 < known.sum() < 50
        assert (cache.read(keys[known], 7) == padded(values, 7)[known]).all()

    def test_a_disk_that_fails_leaves_nothing_half(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = ReferenceCache(tmp_path, {})
        cache.add(np.array([[1, 1]], np.uint64), [np.ones(3, np.float32)])

        def fail(path: Path) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(reference_cache, "to_disk", fail)
            with pytest.raises(OSError, match="No space left"):
                cache.flush()
        assert [path.name for path in cache.folder.iterdir()] == ["manifest.json"]
        cache.flush()
        cache.load()
        assert len(cache) == 1

    def test_a_killed_process_loses_the_last_shard_at_most(self, tmp_path: Path) -> None:
        for delay in (0.0, 0.005, 0.02):
            child = os.fork()
            if not child:
                filled(tmp_path)
                os._exit(0)
            time.sleep(delay)
            os.kill(child, 9)
            os.waitpid(child, 0)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                ReferenceCache(tmp_path, {"model": "m"})
        cache, keys, values = filled(tmp_path)
        cache.load()
        assert (cache.read(keys, 7) == padded(values, 7)).all()

    def test_what_was_left_half_written_long_ago_is_removed(self, tmp_path: Path) -> None:
        cache = ReferenceCache(tmp_path, {})
        old, new = cache.folder / ".1-a.partial", cache.folder / ".2-b.partial"
        for path in (old, new):
            path.write_text("half")
        os.utime(old, (0, 0))
        cache.load()
        assert new.exists()
        assert not old.exists()


def test_shards_are_written_while_values_come_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_cache, "_SHARD_VALUES", 10)
    cache = ReferenceCache(tmp_path, {})
    for number in range(7):
        cache.add(np.array([[1, number]], np.uint64), [np.ones(4, np.float32)])
    assert len(list(cache.folder.glob("*.arrow"))) == 2
    cache.load()
    assert len(cache) == 6


def test_the_keys_are_the_same_on_any_machine() -> None:
    """Little-endian int64 of 2 · id + scored: 1 → 2, 2 → 4, scored 3 → 7, hashed with blake2b to 128 bits."""
    batch = pair_batch([[1, 2]], [([3], [3])])
    assert torch.equal(batch.input_ids[0, 0], torch.tensor([1, 2, 3]))
    import hashlib

    content = b"".join(number.to_bytes(8, "little") for number in (2, 4, 7))
    expected = hashlib.blake2b(content, digest_size=16).digest()
    assert sequence_keys(batch)[0].astype("<u8").tobytes() == expected
