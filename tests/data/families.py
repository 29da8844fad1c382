"""The chat templates of common model families, each with a small tokenizer that has its control tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tests.data.conftest import train_tokenizer

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Family:
    """What is particular to a family.

    Args:
        control: its control tokens; the last one is EOS.
        ends: the token that ends an answer.
        lead: what the template writes between the opened prompt and an answer by itself.
        blank: an answer begins with a blank of the template's.
        alternates: user and assistant must take turns.
        bos: its BOS.
    """

    control: tuple[str, ...]
    ends: str
    lead: str = ""
    blank: str = ""
    alternates: bool = False
    bos: str | None = None


IM = ("<|im_start|>", "<|endoftext|>", "<|im_end|>")
FAMILIES = {
    "llama3": Family(
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        ends="<|eot_id|>",
        bos="<|begin_of_text|>",
    ),
    "qwen2_5": Family(IM, ends="<|im_end|>"),
    "qwen3": Family(IM, ends="<|im_end|>", lead="<think>\n\n</think>\n\n"),
    "gemma": Family(
        ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"), ends="<end_of_turn>", alternates=True, bos="<bos>"
    ),
    "mistral": Family(("<s>", "[INST]", "[/INST]", "</s>"), ends="</s>", blank=" ", alternates=True, bos="<s>"),
    "chatml": Family(IM, ends="<|im_end|>"),
    "zephyr": Family(("<unk>", "</s>"), ends="</s>"),
}


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The family's tokenizer, its template read from the file."""
    family = FAMILIES[name]
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(family.control),
        bos_token=family.bos,
        eos_token=family.control[-1],
        extra_special_tokens=list(family.control[:-1]),
        chat_template=(TEMPLATES / f"{name}.jinja").read_text("utf-8"),
    )
