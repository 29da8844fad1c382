"""The shipped files are what the seed gives."""

from pathlib import Path

import pytest

from lit_align import testbed
from lit_align.testbed import corpus
from lit_align.testbed.preferences import Row


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Row]]:
    return corpus.draw_splits()


@pytest.mark.parametrize("name", corpus.SIZES)
def test_shipped_files_come_back_bit_for_bit(name: str, splits: dict[str, list[Row]], tmp_path: Path) -> None:
    corpus.write_rows(tmp_path / "rows", splits[name])
    assert (tmp_path / "rows").read_bytes() == testbed.path(f"{name}.jsonl").read_bytes()
    assert corpus.read_rows(tmp_path / "rows") == splits[name]


def test_no_post_is_used_twice(splits: dict[str, list[Row]]) -> None:
    prompts = [row["prompt"] for rows in splits.values() for row in rows]
    assert len(prompts) == len(set(prompts)) == sum(corpus.SIZES.values())
    taught = {row["prompt"] for row in corpus.draw_demonstrations(2000)}
    assert len(taught) == 2000
    assert not taught & set(prompts)


def test_sides_differ_and_join_the_prompt_with_a_space(splits: dict[str, list[Row]]) -> None:
    for row in splits["train"] + corpus.draw_demonstrations(2000):
        assert row["chosen"] != row["rejected"]
        assert row["prompt"] == row["prompt"].strip()
        assert all(row[side].startswith(" ") and row[side][1] != " " for side in ("chosen", "rejected"))


def test_another_seed_gives_other_posts(splits: dict[str, list[Row]]) -> None:
    assert corpus.draw_splits(1)["test"] != splits["test"]
