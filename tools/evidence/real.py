"""The page on a real model: its pairs, and its log-likelihoods before and after training."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_align.data.batches.collate import Collate
from lit_align.data.prepared.read_split import SplitReader
from lit_align.data.text.render import QUALITY_PROMPT, RenderOptions, as_messages, insert_quality_prompt, is_dialogue
from lit_align.data.text.tokenizer import Encoder, load_tokenizer
from lit_align.errors import DataError
from lit_align.evaluation.models import LoadedModel, load_hugging_face, tokenize_whole, weight_files
from lit_align.evaluation.preference_sets import SIMILAR, prompt_numbers
from lit_align.evaluation.prompts import evenly_spaced, in_messages
from lit_align.evaluation.record import RowFile, content_digest, write_whole
from lit_align.models import Loading
from lit_align.modules.log_probs import LogProbReaders
from lit_align.types import PreferencePair, TokenizedPair

SETS = {
    "PandaLM": "pandalm_pairs.jsonl",
    "LLMBar": "llmbar_pairs.jsonl",
    "HH harmless": "hh_harmless_base_test.jsonl.gz",
}
AFTER = ("PandaLM", "LLMBar")
"""Sets that trained policies are tested on."""
PLAIN, PAPER, NEUTRAL = "plain", "the paper's", "a neutral one"
PROMPTS = {PLAIN: "", PAPER: QUALITY_PROMPT, NEUTRAL: "Please answer the following query. Query:"}
MOST_TOKENS = 128
"""Of the prompt, read once, and both responses, with the chat template."""
JUDGED_TOKENS = 160
"""Of the pairs that the reward model is trained on."""
MOST_CHARACTERS = 8 * JUDGED_TOKENS
"""Longer pairs are not tokenized to be counted."""
COUNT = 64
"""Most pairs of a set, evenly spaced."""
TRAINED = 96
"""Pairs that are trained on, evenly spaced."""
WRITTEN_TOKENS = 96
"""Most tokens of a generated response."""
HELD_OUT = 3
"""One prompt of so many is held out of training."""
SCALES = ("sum", "mean")
BUCKETS = ("chosen longer", "similar", "chosen shorter")
BATCH = 8
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Readings:
    """Log-likelihoods of a policy on the pairs of a set, or their differences to those of another.

    Args:
        sums: of chosen and rejected, in nats, [pair, side].
        tokens: scored tokens, [pair, side].
        prompts: number of each pair's prompt.
    """

    sums: Numbers
    tokens: Numbers
    prompts: NDArray[np.int64]

    def __sub__(self, other: Readings) -> Readings:
        """Return the differences of the sums: implicit rewards, where the other is the reference."""
        return replace(self, sums=self.sums - other.sums)

    def margins(self, scale: str) -> Numbers:
        """Return chosen minus rejected, of sums or of means per token."""
        return (self.sums / self.tokens if scale == "mean" else self.sums) @ (1.0, -1.0)

    def right(self, scale: str) -> Numbers:
        """Return 1 for pairs whose chosen response is favoured, and one half for ties."""
        return np.sign(self.margins(scale)) / 2 + 0.5

    @property
    def gaps(self) -> Numbers:
        """Tokens of the chosen response minus those of the rejected one."""
        return self.tokens @ (1.0, -1.0)

    def longer(self, scale: str) -> Numbers:
        """Return 1 for pairs whose longer response is favoured; one half for ties, and for equal lengths."""
        return np.sign(self.margins(scale) * self.gaps) / 2 + 0.5

    @property
    def buckets(self) -> NDArray[np.int64]:
        """Place in ``BUCKETS`` of each pair, by lengths that differ by at most a tenth of the longer one or more."""
        similar = np.abs(self.gaps) <= SIMILAR * self.tokens.max(1)
        return np.where(similar, 1, np.where(self.gaps > 0, 0, 2))


@dataclass(frozen=True)
class RealPairs:
    """The pairs of the page.

    Args:
        train: that are trained on.
        judge: that the reward model is trained on, none of ``train`` and of no prompt that is tested on.
        tests: name of a set → its pairs.
        available: name of a set → how many of its pairs are short enough.
        unusable: name of a set → how many of its rows are no pairs, such as those with a blank response.
    """

    train: Sequence[PreferencePair]
    judge: Sequence[PreferencePair]
    tests: Mapping[str, Sequence[PreferencePair]]
    available: Mapping[str, int]
    unusable: Mapping[str, int]


@cache
def choose_pairs(model: str, data: Path) -> RealPairs:
    """Choose the short pairs of each set; PandaLM's are divided by prompts into those to train and to test on.

    Args:
        model: folder whose tokenizer counts.
        data: folder of the sets.
    """
    encoder = Encoder(load_tokenizer(model))
    tests: dict[str, Sequence[PreferencePair]] = {}
    train: list[PreferencePair] = []
    judge: list[PreferencePair] = []
    available, unusable = {}, {}
    for name, file in SETS.items():
        rows = list(SplitReader.of(str(data / file), "hh" if name.startswith("HH") else "auto"))
        pairs = [_messages(pair) for row in rows if not isinstance(row, DataError) for pair in row.pairs]
        unusable[name] = len(rows) - len(pairs)  # a row is one pair
        pairs = [pair for pair in pairs if _characters(pair) <= MOST_CHARACTERS]
        widths = [_width(tokens) for tokens in tokenize_whole(encoder, pairs, RenderOptions())]
        short = [pair for pair, width in zip(pairs, widths, strict=True) if width <= MOST_TOKENS]
        available[name] = len(short)
        if name == "PandaLM":
            train = evenly_spaced([pair for pair in short if not held_out(pair)], TRAINED)
            wider = [pair for pair, width in zip(pairs, widths, strict=True) if width <= JUDGED_TOKENS]
            judge = [pair for pair in wider if not held_out(pair) and pair not in train]
            short = [pair for pair in short if held_out(pair)]
        tests[name] = evenly_spaced(short, COUNT)
    return RealPairs(train, judge, tests, available, unusable)


def held_out(pair: PreferencePair) -> bool:
    """Whether the pairs of this prompt are tested on, by a digest of the prompt."""
    return int(content_digest(pair.prompt)[:8], 16) % HELD_OUT == 0


def _messages(pair: PreferencePair) -> PreferencePair:
    return as_messages(pair) if is_dialogue(pair.prompt) else in_messages(pair)


def _characters(pair: PreferencePair) -> int:
    return sum(len(str(text)) for text in (pair.prompt, pair.chosen, pair.rejected))


def _width(pair: TokenizedPair) -> int:
    return len(pair.prompt) + sum(len(side.ids) for side in pair.sides)


def vote_share(pair: PreferencePair) -> float:
    """Return the share of votes for the chosen response, ties counting one half.

    >>> vote_share(
    ...     PreferencePair("2 + 2?", "4.", "5.", extra={"votes_chosen": 1, "votes_rejected": 0, "votes_tie": 2})
    ... )
    0.6666666666666666
    """
    chosen, rejected, tie = (pair.extra[f"votes_{side}"] for side in ("chosen", "rejected", "tie"))
    return float(chosen + tie / 2) / (chosen + rejected + tie)


def write_data(pairs: RealPairs, folder: Path) -> None:
    """Write the pairs of each run, the training pairs also with votes as label probabilities, and the test prompts."""
    tested = [pair for name in AFTER for pair in pairs.tests[name]]
    votes = [
        row | {"preference_probability": vote_share(pair)}
        for row, pair in zip(_rows(pairs.train), pairs.train, strict=True)
    ]
    prompts = {content_digest(pair.prompt): {"prompt": pair.prompt} for pair in tested}
    files = {
        "train": _rows(pairs.train),
        "votes": votes,
        "judge": _rows(pairs.judge),
        "test": _rows(pairs.tests["PandaLM"]),
    }
    for name, rows in (files | {"prompts": list(prompts.values())}).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file = folder / f"{name}.jsonl"
        if not file.is_file() or file.read_text("utf-8") != text:
            write_whole(file, text)


def _rows(pairs: Sequence[PreferencePair]) -> list[dict[str, Any]]:
    return [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_policy(
    model: str, pairs: Sequence[PreferencePair], folder: Path, prompt: str = "", report: bool = False
) -> Readings | None:
    """Read the log-likelihoods of a policy; what has been read is kept, so that an interrupted command goes on.

    Args:
        model: folder of a model or of an adapter.
        pairs: to read.
        folder: where rows are kept.
        prompt: text in front of the first user turn; empty for none.
        report: read nothing, and return None where anything is missing.
    """
    if prompt:
        pairs = [replace(pair, prompt=insert_quality_prompt(_turns(pair), prompt, "start")) for pair in pairs]
    folder.mkdir(parents=True, exist_ok=True)
    file = RowFile(folder / "readings.jsonl", {"files": weight_files(Path(model))})
    digests = [content_digest([pair.prompt, pair.chosen, pair.rejected]) for pair in pairs]
    known = {row["of"] for row in file.rows}
    missing = {digest: pair for digest, pair in zip(digests, pairs, strict=True) if digest not in known}
    if missing and report:
        return None
    for row in _read(_load(model), missing) if missing else ():
        file.add([row])
    rows = {row["of"]: row for row in file.rows}
    sums, tokens = (np.array([rows[digest][name] for digest in digests], dtype=float) for name in ("sums", "tokens"))
    return Readings(sums, tokens, np.array(prompt_numbers(pairs)))


def _turns(pair: PreferencePair) -> Any:
    assert not isinstance(pair.prompt, str)
    return pair.prompt


@cache
def _load(model: str) -> LoadedModel:
    return load_hugging_face(model, Path(model).name, Loading(), "cpu")


@torch.no_grad()
def _read(loaded: LoadedModel, pairs: Mapping[str, PreferencePair]) -> Iterator[dict[str, Any]]:
    """Read pairs by length, each prompt once for both responses; CPU seconds are kept with the numbers."""
    tokenized = dict(zip(pairs, loaded.tokenize(list(pairs.values())), strict=True))
    order = sorted(tokenized, key=lambda digest: _width(tokenized[digest]))
    readers = LogProbReaders()
    for start in range(0, len(order), BATCH):
        began = time.process_time()
        own = order[start : start + BATCH]
        batch = Collate(loaded.encoder.pad)([(tokenized[digest], 1.0) for digest in own])
        sums = readers.read(loaded.model, batch).double().sum(-1)
        seconds = (time.process_time() - began) / len(own)
        for digest, each, tokens in zip(own, sums.tolist(), batch.lengths.tolist(), strict=True):
            yield {"of": digest, "sums": each, "tokens": tokens, "seconds": seconds}


def read_start(
    model: str, pairs: RealPairs, runs: Path, report: bool = False, names: Sequence[str] = tuple(SETS)
) -> dict[tuple[str, str], Readings]:
    """Return prompt and set → readings of the model before training, those that exist if nothing may be read.

    Of some sets alone the control, a neutral prompt, is left for later.
    """
    readings = {
        (prompt, name): read_policy(model, pairs.tests[name], runs / "start", PROMPTS[prompt], report)
        for prompt in PROMPTS
        for name in names
        if names == tuple(SETS) or prompt != NEUTRAL
    }
    return {key: own for key, own in readings.items() if own is not None}


def measure(run: Path, pairs: RealPairs) -> dict[str, Any]:
    """Return the sums of a run's final policy on the sets that trained policies are tested on, and its losses."""
    final = {}
    for name in AFTER:
        readings = read_policy(str(run / "policy"), pairs.tests[name], run / "readings")
        assert readings is not None
        final[name] = readings.sums.tolist()
    _load.cache_clear()
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "train/loss" in row]
    return {"steps": {str(row["step"]): {"loss": row["train/loss"]} for row in rows}, "final": final}
