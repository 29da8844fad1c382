"""The work that is measured: pairs of text, a tokenizer, and a model with random weights, in a folder of their own."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable
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
SHAPES: dict[str, dict[str, int]] = {
    "tiny": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
    "small": dict(hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8),
    "medium": dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8),
    "1b": dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8
    ),
}


@dataclass(frozen=True)
class Work:
    """What both sides are given.

    Args:
        folder: of everything.
        steps: optimizer steps, the first of which warms up.
        batch: pairs in each.
        tokens: prompt and response tokens of both sides of each step, without padding.
    """

    folder: Path
    steps: int
    batch: int
    tokens: tuple[int, ...]

    @property
    def pairs(self) -> Path:
        """The pairs as our side reads them."""
        return self.folder / "pairs.jsonl"

    @property
    def ordered(self) -> Path:
        """The same pairs in the order in which our side trains on them."""
        return self.folder / "ordered.jsonl"

    @property
    def shuffled(self) -> Path:
        """The same pairs, the first batch as ours, all others in a random order: what a random sampler gives."""
        return self.folder / "shuffled.jsonl"

    def model(self, vocabulary: int) -> Path:
        """Folder of the model with so many tokens."""
        return self.folder / f"model-{vocabulary}"


def read_pairs(path: Path | None) -> list[dict[str, str]]:
    """Prompt, chosen and rejected of each usable row; those of the testbed without a file.

    Args:
        path: JSON lines, may be gzipped, with a prompt or as dialogues of HH-RLHF.
    """
    path = path or testbed.path("train.jsonl")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = [_split(json.loads(line)) for line in file]
    return [row for row in rows if row is not None]


def _split(row: dict[str, Any]) -> dict[str, str] | None:
    """A dialogue ends with the assistant's turn; its prompt is what both have before that turn."""
    if "prompt" in row:
        return {key: row[key] for key in ("prompt", "chosen", "rejected")}
    sides = {side: row[side].rpartition(ASSISTANT) for side in ("chosen", "rejected")}
    prompts = {before for before, _, _ in sides.values()}
    if len(prompts) != 1 or not all(answer.strip() for _, _, answer in sides.values()):
        return None
    return {"prompt": prompts.pop() + ASSISTANT, **{side: answer for side, (_, _, answer) in sides.items()}}


def words(prompt: int, response: int, count: int) -> list[dict[str, str]]:
    """Pairs of so many one-word tokens, the end left out."""
    rng = random.Random(0)

    def text(length: int) -> str:
        return "".join(f" {rng.randrange(1000)}" for _ in range(length))

    return [
        {"prompt": text(prompt), "chosen": text(response - 1), "rejected": text(response - 1)} for _ in range(count)
    ]


def prepare(folder: Path, rows: list[dict[str, str]], steps: int, batch: int, models: dict[int, str]) -> Work:
    """Write pairs, tokenizer and models, and the pairs once more in the order in which our side will take them.

    Args:
        folder: for everything.
        rows: pairs to draw from, with one seed.
        steps: optimizer steps.
        batch: pairs in each.
        models: vocabulary → name of a shape.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = random.Random(0).sample(rows, steps * batch)
    write(folder / "pairs.jsonl", chosen)
    tokenizer = _tokenizer(rows, min(models))
    for vocabulary, shape in models.items():
        place = folder / f"model-{vocabulary}"
        _write_model(place, vocabulary, shape, tokenizer)
        tokenizer.save_pretrained(place)
    data = PreferenceData(
        train=str(folder / "pairs.jsonl"), tokenizer=str(place), batch_size=batch, max_length=MAX_LENGTH, cache=None
    )
    with redirect_stdout(StringIO()):  # the table of lengths is not what is asked for here
        data.setup("fit")
    batches = list(data.train_dataloader())
    order = [row for found in batches for row in found.index.tolist()]
    write(folder / "ordered.jsonl", (chosen[row] for row in order))
    rest = random.Random(0).sample(order[batch:], len(order) - batch)
    write(folder / "shuffled.jsonl", (chosen[row] for row in [*order[:batch], *rest]))
    return Work(folder, steps, batch, tuple(int(found.attention_mask.sum()) for found in batches))


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _tokenizer(rows: list[dict[str, str]], most: int) -> Any:
    """Byte-level BPE of the pairs; a blank begins a word, so a prompt and its responses split where they meet."""
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
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPES[shape],
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
