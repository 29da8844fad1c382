"""The work of both sides: pairs of text, a tokenizer, and models with random weights, in a folder."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from lit_align import testbed
from lit_align.data import PreferenceData

ASSISTANT = "\n\nAssistant:"
END, PAD = "<end>", "<pad>"
MAX_LENGTH = 1024
"""Tokens of prompt and response that models of random weights read, unless told otherwise."""
SHAPES: dict[str, dict[str, int]] = {
    "tiny": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
    "small": dict(hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8),
    "medium": dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8),
    "360m": dict(  # as SmolLM2-360M, with a vocabulary of 49,152
        hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5,
        tie_word_embeddings=True,
    ),
    "1b": dict(  # as Llama-3.2-1B, with a vocabulary of 128,256
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Files and sizes of the work.

    Args:
        folder: of all files.
        steps: optimizer steps, of which the first is a warm-up.
        batch: pairs per step.
        tokens: of each step, prompts and responses of both sides without padding.
        models: label → folder of a model.
        max_length: tokens of prompt and response.
    """

    folder: Path
    steps: int
    batch: int
    tokens: tuple[int, ...]
    models: Mapping[str, Path]
    max_length: int

    @property
    def pairs(self) -> Path:
        """File of the pairs as our side reads them."""
        return self.folder / "pairs.jsonl"

    @property
    def ordered(self) -> Path:
        """File of the same pairs in the order in which our side trains on them."""
        return self.folder / "ordered.jsonl"

    @property
    def shuffled(self) -> Path:
        """File of the same pairs in a random order, apart from the first batch."""
        return self.folder / "shuffled.jsonl"


def read_pairs(path: Path | None) -> list[dict[str, str]]:
    """Read prompt, chosen and rejected of each usable row.

    Args:
        path: JSON lines, possibly gzipped, with a prompt or as dialogues of HH-RLHF; None for the testbed's.
    """
    path = path or testbed.path("train.jsonl")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = [_split(json.loads(line)) for line in file]
    return [row for row in rows if row is not None]


def _split(row: dict[str, Any]) -> dict[str, str] | None:
    """Split a row; a dialogue ends with the assistant's turn, and both sides share the text before it."""
    if "prompt" in row:
        return {key: row[key] for key in ("prompt", "chosen", "rejected")}
    sides = {side: row[side].rpartition(ASSISTANT) for side in ("chosen", "rejected")}
    prompts = {before for before, _, _ in sides.values()}
    if len(prompts) != 1 or not all(answer.strip() for _, _, answer in sides.values()):
        return None
    return {"prompt": prompts.pop() + ASSISTANT, **{side: answer for side, (_, _, answer) in sides.items()}}


def words(prompt: int, response: int, count: int) -> list[dict[str, str]]:
    """Return pairs with given numbers of one-word tokens; a response's end token counts."""
    rng = random.Random(0)

    def text(length: int) -> str:
        return "".join(f" {rng.randrange(1000)}" for _ in range(length))

    return [
        {"prompt": text(prompt), "chosen": text(response - 1), "rejected": text(response - 1)} for _ in range(count)
    ]


def random_models(
    folder: Path, rows: list[dict[str, str]], shape: str, vocabularies: Iterable[int]
) -> dict[str, Path]:
    """Write models with random weights and a tokenizer that is trained on the pairs, and return them by label.

    Args:
        folder: of all models.
        rows: text for the tokenizer.
        shape: a key of ``SHAPES``.
        vocabularies: sizes.
    """
    sizes = list(vocabularies)
    tokenizer = _tokenizer(rows, min(sizes))
    models = {f"vocabulary of {size}": folder / f"model-{size}" for size in sizes}
    for size, place in zip(sizes, models.values(), strict=True):
        _write_model(place, size, shape, tokenizer)
        tokenizer.save_pretrained(place)
    return models


def prepare(
    folder: Path, rows: list[dict[str, str]], steps: int, batch: int, models: Mapping[str, Path], max_length: int
) -> Work:
    """Write pairs, and the pairs again in the order in which our side trains on them.

    Args:
        folder: of all files.
        rows: pairs to sample from, with a fixed seed; those that are too long are left out.
        steps: optimizer steps.
        batch: pairs per step.
        models: label → folder of a model; all have the same tokenizer.
        max_length: tokens of prompt and response.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = str(next(iter(models.values())))
    fitting = _fitting(rows, tokenizer, max_length)
    chosen = random.Random(0).sample(fitting, steps * batch)
    write(folder / "pairs.jsonl", chosen)
    data = PreferenceData(
        train=str(folder / "pairs.jsonl"),
        tokenizer=tokenizer,
        batch_size=batch,
        max_length=max_length,
        render="text",
        cache=None,
    )
    with redirect_stdout(StringIO()):  # without the table of lengths
        data.setup("fit")
    batches = list(data.train_dataloader())
    order = [row for each in batches for row in each.index.tolist()]
    write(folder / "ordered.jsonl", (chosen[row] for row in order))
    rest = random.Random(0).sample(order[batch:], len(order) - batch)
    write(folder / "shuffled.jsonl", (chosen[row] for row in [*order[:batch], *rest]))
    tokens = tuple(int(each.attention_mask.sum()) for each in batches)
    return Work(folder, steps, batch, tokens, models, max_length)


def _fitting(rows: list[dict[str, str]], tokenizer: str, max_length: int) -> list[dict[str, str]]:
    """Return the pairs that no side needs to truncate: truncation differs between libraries."""
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer)
    lengths = [
        max(len(ids) for ids in encode([row["prompt"] + row[side] for side in ("chosen", "rejected")])["input_ids"])
        for row in rows
    ]
    return [row for row, length in zip(rows, lengths, strict=True) if length < max_length]


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _tokenizer(rows: list[dict[str, str]], most: int) -> Any:
    """Train a byte-level BPE of the pairs; words begin with a space, so that prompts and responses split cleanly."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=most, special_tokens=[PAD, END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator((text for row in rows for text in row.values()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def _write_model(folder: Path, vocabulary: int, shape: str, tokenizer: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=2 * MAX_LENGTH,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{"tie_word_embeddings": False, **SHAPES[shape]},
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
