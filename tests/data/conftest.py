"""Small tokenizers, trained here, and helpers to write rows to files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "A small ship left the harbour at dawn, and the keeper of the lighthouse waved.",
    "Human: where does the river end? Assistant: it ends in the sea, after forty miles.",
    "Please generate a response that is useful. Note that it should be harmless. Query:",
    "They counted 1 2 3 4 5 6 7 8 9 10 boats; none of them, they said, was theirs.",
] * 8

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
BARE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def train_tokenizer(control: Sequence[str]) -> Tokenizer:
    """A byte-level tokenizer of about 400 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(control), initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def plain() -> PreTrainedTokenizerFast:
    """Uses no BOS."""
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(["</s>", "<pad>", "<|user|>"]),
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<|user|>"],
    )


@pytest.fixture(scope="session")
def bos() -> PreTrainedTokenizerFast:
    """Puts BOS in front and, against good manners, EOS behind; no pad token."""
    tokenizer = train_tokenizer(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", tokenizer.token_to_id("<s>")), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def llama3() -> PreTrainedTokenizerFast:
    """BOS in the tokenizer and in the template; the turn ends in another token than EOS."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer = train_tokenizer(names)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=names[0],
        eos_token=names[1],
        extra_special_tokens=names[2:],
        chat_template=LLAMA3,
    )


@pytest.fixture(scope="session")
def chatml() -> PreTrainedTokenizerFast:
    """No BOS; the turn ends in EOS and a line break."""
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(["<|im_start|>", "<|im_end|>", "<pad>"]),
        eos_token="<|im_end|>",
        pad_token="<pad>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


@pytest.fixture(scope="session")
def bare() -> PreTrainedTokenizerFast:
    """A template without control tokens."""
    return PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(["</s>"]), eos_token="</s>", chat_template=BARE)


@pytest.fixture(scope="session")
def saved(plain: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the plain tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    plain.save_pretrained(folder)
    return str(folder)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows (objects, or lines as they shall stand there) to a file and returns its path."""

    def write_rows(rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
        lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
        path = tmp_path / name
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write_rows
