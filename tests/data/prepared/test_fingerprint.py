from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_align.data.formats.rankings import BestVersusRest, RandomPair, Ranking
from lit_align.data.formats.registry import formats
from lit_align.data.prepared.fingerprint import cache_key, is_large, is_local, tokenizer_content
from lit_align.data.prepared.mixture import Source
from lit_align.data.prepared.read_split import Holdout, SplitReader
from lit_align.data.text.render import RenderOptions
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder
from lit_align.data.text.truncate import Cut, Drop
from lit_align.errors import DataError
from tests.data.conftest import CHATML, Write
from tests.data.examples import pair_row

Settings = tuple[SplitReader, Tokenize]


@pytest.fixture
def given(write: Write, saved: str) -> Settings:
    path = write([pair_row(number) for number in range(4)])
    tokenizer = AutoTokenizer.from_pretrained(saved)
    return SplitReader((Source(str(path), columns={}, format="auto"),)), Tokenize(Encoder(tokenizer), Cut(64))


def row(change: Callable[[str], str]) -> Callable[[Settings], Settings]:
    def changed(given: Settings) -> Settings:
        path = Path(given[0].sources[0].path)
        path.write_text(change(path.read_text("utf-8")), "utf-8")
        return given

    return changed


def source(**settings: Any) -> Callable[[Settings], Settings]:
    return lambda given: (replace(given[0], sources=(replace(given[0].sources[0], **settings),)), given[1])


def reader(**settings: Any) -> Callable[[Settings], Settings]:
    return lambda given: (replace(given[0], **settings), given[1])


def tokenize(**settings: Any) -> Callable[[Settings], Settings]:
    return lambda given: (given[0], replace(given[1], **settings))


def tokenizer(change: Callable[[PreTrainedTokenizerFast], object]) -> Callable[[Settings], Settings]:
    def changed(given: Settings) -> Settings:
        change(given[1].encoder.tokenizer)
        return given

    return changed


def renamed(given: Settings) -> Settings:
    path = Path(given[0].sources[0].path)
    return source(path=str(path.rename(path.with_name("other.jsonl"))))(given)


def moved(given: Settings) -> Settings:
    path = Path(given[0].sources[0].path)
    folder = path.parent / "elsewhere"
    folder.mkdir()
    return source(path=str(path.rename(folder / path.name)))(given)


def padded(found: PreTrainedTokenizerFast) -> None:
    found(["a", "a longer text"], padding=True, truncation=True, max_length=4)


MISSES = {
    "a character of a row": row(lambda text: text.replace("ship", "shop", 1)),
    "the order of the rows": row(lambda text: "\n".join(reversed(text.splitlines()))),
    "a row more": row(lambda text: text + text.splitlines()[0]),
    "the name that messages call the file": renamed,
    "format": source(format="pairs"),
    "columns": source(columns={"margin": None}),
    "repeat": source(repeat=2),
    "weight": source(weight=1.0),
    "a second source": lambda given: (replace(given[0], sources=given[0].sources * 2), given[1]),
    "limit": reader(limit=4),
    "holdout": reader(holdout=Holdout(0.5)),
    "pairing": reader(formats=formats(Ranking(BestVersusRest()))),
    "min_gap": reader(formats=formats(Ranking(min_gap=1.0))),
    "max_length": tokenize(truncation=Cut(63)),
    "max_response_length": tokenize(truncation=Cut(64, 20)),
    "truncation": tokenize(truncation=Drop(64)),
    "quality prompt": tokenize(options=RenderOptions("Answer well:")),
    "where the quality prompt stands": tokenize(options=RenderOptions(quality_position="last_turn")),
    "which turns are scored": tokenize(options=RenderOptions(score="all_turns")),
    "what is scored behind a turn": tokenize(options=RenderOptions(score_end="all")),
    "dialogues": tokenize(options=RenderOptions(dialogues="chat")),
    "messages that a template leaves out": tokenize(options=RenderOptions(on_template_loss="warn")),
    "template": tokenizer(lambda found: setattr(found, "chat_template", CHATML)),
    "special tokens": tokenizer(lambda found: setattr(found, "eos_token", "<|user|>")),
    "control tokens": tokenizer(lambda found: found.add_special_tokens({"extra_special_tokens": ["<|more|>"]})),
    "vocabulary": tokenizer(lambda found: found.add_tokens(["harbour"])),
}
HITS = {
    "the time of the file": row(lambda text: text),
    "the folder of the file": moved,
    "the seed where nothing is drawn": reader(seed=7),
    "which share is held where none is": reader(held_out=True),
    "what the tokenizer was told about padding": tokenizer(padded),
}


@pytest.mark.parametrize("reads_clock", [False, True])
def test_the_date_enters_the_key_of_a_template_that_is_told_it(given: Settings, reads_clock: bool) -> None:
    tokenizer = given[1].encoder.tokenizer
    tokenizer.chat_template = "{{ strftime_now('%d') }}" * reads_clock + CHATML
    keys = {cache_key(given[0], replace(given[1], encoder=Encoder(tokenizer, date(2024, 7, day)))) for day in (26, 27)}
    assert len(keys) == 1 + reads_clock


@pytest.mark.parametrize("change", MISSES.values(), ids=MISSES)
def test_what_enters_the_pairs_enters_the_key(given: Settings, change: Callable[[Settings], Settings]) -> None:
    before = cache_key(*given)
    assert cache_key(*change(given)) != before


@pytest.mark.parametrize("change", HITS.values(), ids=HITS)
def test_nothing_else_does(given: Settings, change: Callable[[Settings], Settings]) -> None:
    before = cache_key(*given)
    assert cache_key(*change(given)) == before


def test_a_seed_that_draws_enters(given: Settings) -> None:
    weighted = source(weight=1.0)(given)
    assert cache_key(*weighted) != cache_key(*reader(seed=7)(weighted))
    one, other = (reader(formats=formats(Ranking(RandomPair(seed))))(given) for seed in (0, 1))
    assert cache_key(*one) != cache_key(*other)


def test_a_new_process_finds_the_same(given: Settings, saved: str) -> None:
    again = AutoTokenizer.from_pretrained(saved)
    assert tokenizer_content(again) == tokenizer_content(given[1].encoder.tokenizer)


def test_only_local_files_are_found_again(given: Settings, write: Write) -> None:
    assert is_local(given[0])
    assert not is_large(given[0])
    assert not is_local(SplitReader.of("owner/name"))
    assert not is_large(SplitReader.of("stream:owner/name"))
    large = Path(given[0].sources[0].path).with_name("large.jsonl")
    with large.open("wb") as file:
        file.truncate(2**25)
    assert is_large(SplitReader.of(str(large)))


def test_a_saved_folder_is_its_files(given: Settings, tmp_path: Path) -> None:
    from datasets import Dataset

    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, number in zip(folders, (0, 0, 1), strict=True):
        Dataset.from_list([pair_row(number)]).save_to_disk(folder)
    one, same, other = (cache_key(SplitReader.of(str(folder)), given[1]) for folder in folders)
    assert one != other
    assert is_local(SplitReader.of(str(folders[0])))


def test_a_file_that_cannot_be_read_is_named(given: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"rows\.jsonl: cannot be read to its end: PermissionError"):
        cache_key(*given)


def test_the_key_covers_the_code_that_prepares_pairs(given: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key(*given)
    monkeypatch.setattr("lit_align.data.prepared.fingerprint.code_digest", lambda package: f"changed {package.name}")
    assert cache_key(*given) != before
