"""Small tokenizers, each with the normalizer, pre-tokenizer and decoder of a published family."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import ByT5Tokenizer, CTRLTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast
from typing_extensions import override

from tests.data.conftest import TEXT

CONTROL = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>")
SIZE = 420
BLANK = "▁"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_4O = TEKKEN.replace(r"|\p{N}|", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|")


# ── SentencePiece-like ──────────────────────────────────────────────────────────────────────────────────────────────


def llama_2() -> PreTrainedTokenizerFast:
    """Put a blank in front of every stretch of text between control tokens; also Mistral 0.1 and Zephyr."""
    inner = _sentencepiece_bpe()
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    return _fast(inner, start="<s>")


def mistral(prepend_scheme: str) -> PreTrainedTokenizerFast:
    """Put a blank in front of the text (``first``: Mistral 0.3) or of every stretch of it (``always``)."""
    inner = _sentencepiece_bpe()
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme=prepend_scheme, split=False)
    return _fast(inner, start="<s>")


def phi_3() -> PreTrainedTokenizerFast:
    """Take the line break behind a control token away."""
    inner = _sentencepiece_bpe()
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    names = ("<|user|>", "<|assistant|>", "<|end|>")
    inner.add_special_tokens([AddedToken(name, rstrip=True, normalized=False) for name in names])
    return _fast(inner, names=())


def gemma() -> PreTrainedTokenizerFast:
    """Put no blank in front."""
    inner = _sentencepiece_bpe()
    inner.normalizer = normalizers.Replace(" ", BLANK)
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    inner.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])
    return _fast(inner, start="<s>")


def t5() -> PreTrainedTokenizerFast:
    """Unigram: keeps one blank of several, and has an unknown token."""
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always")
    inner.decoder = decoders.Metaspace(replacement=BLANK, prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=260,
        special_tokens=list(CONTROL),
        unk_token="<unk>",
        initial_alphabet=list(string.printable),
        show_progress=False,
    )
    inner.train_from_iterator(TEXT, trainer)
    return _fast(inner, end="</s>")


def _sentencepiece_bpe() -> Tokenizer:
    """Train on words that begin with a blank, and add a token for each byte."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always")
    inner.train_from_iterator(TEXT, _trainer(CONTROL))
    content = json.loads(inner.to_str())
    vocabulary = content["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    content["pre_tokenizer"] = None
    inner = Tokenizer.from_str(json.dumps(content))
    strip = decoders.Strip(" ", 1, 0)
    inner.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return inner


# ── byte-level ──────────────────────────────────────────────────────────────────────────────────────────────────────


def byte_level(pattern: str, start: str | None = None, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """Split by a pattern: Llama 3, Tekken, and what is converted from tiktoken."""
    inner = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
    return _train_byte_level(inner, start)


def qwen_2() -> PreTrainedTokenizerFast:
    """Compose characters first."""
    inner = byte_level(QWEN_2).backend_tokenizer
    inner.normalizer = normalizers.NFC()
    return _fast(inner)


def opt(add_prefix_space: bool) -> PreTrainedTokenizerFast:
    """GPT-2 and its like, with BOS, and offsets that leave blanks out; one token has all roles."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, trim_offsets=True)
    tokenizer = _train_byte_level(inner, "</s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="</s>", eos_token="</s>", unk_token="</s>"
    )


def gpt_neox(add_prefix_space: bool) -> PreTrainedTokenizerFast:
    """Has tokens of several blanks that are added to the vocabulary."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    inner = _train_byte_level(inner, None).backend_tokenizer
    inner.normalizer = normalizers.NFC()
    inner.add_tokens([AddedToken(" " * count, normalized=True) for count in (4, 3, 2)])
    return _fast(inner)


def _train_byte_level(inner: Tokenizer, start: str | None) -> PreTrainedTokenizerFast:
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(TEXT, _trainer(CONTROL, pre_tokenizers.ByteLevel.alphabet()))
    return _fast(inner, start=start)


# ── others ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT: without case, accents and blanks; a word with an unknown character is unknown."""
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=list(CONTROL), show_progress=False)
    inner.train_from_iterator(TEXT, trainer)
    return _fast(inner, start="<s>", end="</s>")


class SentencePieceInPython(PreTrainedTokenizer):
    """A tokenizer without offsets that puts a blank in front of every stretch of text, as the slow Llama 2 does."""

    def __init__(self, **settings: Any) -> None:
        self.inner = llama_2()
        super().__init__(eos_token="</s>", bos_token="<s>", unk_token="<unk>", **settings)

    @property
    @override
    def vocab_size(self) -> int:
        return len(self.inner)

    @override
    def get_vocab(self) -> dict[str, int]:
        return dict(self.inner.get_vocab())

    @override
    def _tokenize(self, text: str, **settings: Any) -> list[str]:
        ids = self.inner(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return list(self.inner.convert_ids_to_tokens(ids))

    @override
    def _convert_token_to_id(self, token: str) -> int:
        return int(self.inner.convert_tokens_to_ids(token))

    @override
    def _convert_id_to_token(self, index: int) -> str:
        return str(self.inner.convert_ids_to_tokens(index))

    @override
    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return str(self.inner.convert_tokens_to_string(tokens))

    @override
    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: Any = None) -> list[int]:
        return [self.bos_token_id, *token_ids_0]


def ctrl() -> PreTrainedTokenizer:
    """A tokenizer in Python whose tokens know whether a word goes on: a word cannot be continued."""
    words = sorted({word for text in TEXT for word in text.split()})
    letters = sorted({letter for word in words for letter in word} | {"\n"})
    tokens = ["<unk>", "</s>", *letters, *(f"{letter}@@" for letter in letters)]
    with TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}), "utf-8")
        merges.write_text("#version: 0.2\n", "utf-8")
        return CTRLTokenizer(str(vocabulary), str(merges), eos_token="</s>")


def _trainer(control: Sequence[str], alphabet: Iterable[str] = ()) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=list(control), initial_alphabet=sorted(alphabet), show_progress=False
    )


def _fast(
    inner: Tokenizer, start: str | None = None, end: str | None = None, names: Sequence[str] = CONTROL[3:]
) -> PreTrainedTokenizerFast:
    if start or end:
        special = [(token, inner.token_to_id(token)) for token in (start, end) if token]
        single = " ".join(part for part in (start, "$A", end) if part)
        inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=list(names)
    )


PUBLISHED: dict[str, Callable[[], Any]] = {
    "llama_2": llama_2,
    "mistral_first": lambda: mistral("first"),
    "mistral_always": lambda: mistral("always"),
    "phi_3": phi_3,
    "gemma": gemma,
    "t5": t5,
    "llama_3": lambda: byte_level(LLAMA_3, "<s>", ignore_merges=True),
    "tekken": lambda: byte_level(TEKKEN, "<s>"),
    "tiktoken": lambda: byte_level(GPT_4O),
    "qwen_2": qwen_2,
    "opt": lambda: opt(False),
    "opt_prefix": lambda: opt(True),
    "gpt_neox": lambda: gpt_neox(False),
    "gpt_neox_prefix": lambda: gpt_neox(True),
    "wordpiece": wordpiece,
    "python_sentencepiece": SentencePieceInPython,
    "python_bytes": ByT5Tokenizer,
    "python_words": ctrl,
}


@cache
def published(name: str) -> Any:
    """The tokenizer of a family, trained once."""
    return PUBLISHED[name]()
