"""Loading tokenizers, and encoding text so that data never becomes a control token."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typing_extensions import override

from lit_align import testbed
from lit_align.errors import shown
from lit_align.files import at_home

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def load_tokenizer(
    name: str, revision: str | None = None, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer with an end-of-sequence token.

    Args:
        name: local folder, hub name ``owner/name``, or ``testbed:policy``.
        revision: branch, tag or commit hash of a hub tokenizer.
        chat_template: file with a chat template (Jinja) that replaces the tokenizer's own.

    Raises:
        FileNotFoundError: the folder or the tokenizer in it does not exist, or the hub cannot be reached. A path is
            never looked up on the hub.
        ValueError: the tokenizer is not fast, has no EOS, or the template is invalid.
    """
    folder = testbed.resolve(name) or at_home(name)
    if folder.is_dir():
        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(f"tokenizer.json is missing in {folder}: no fast tokenizer there")
    elif not _HUB_NAME.fullmatch(name) or Path(name.split("/")[0]).exists():
        raise FileNotFoundError(f"tokenizer folder not found: {name} (expected a folder, or a hub name owner/name)")
    place = str(folder) if folder.is_dir() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(f"tokenizer {name} cannot be read: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{place}: {type(tokenizer).__name__} is not a fast tokenizer (tokenizer.json)")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{place}: tokenizer has no EOS; set eos_token")
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    return tokenizer


def read_template(path: str) -> str:
    """Read a chat template from a file.

    Args:
        path: path of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not UTF-8 or not valid Jinja, or never uses the messages.
    """
    file = at_home(path)
    if not file.is_file():
        raise FileNotFoundError(f"data.chat_template not found: {path} (expected a file with a Jinja template)")
    try:
        text = file.read_bytes().decode("utf-8-sig")
        Environment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; expected a Jinja template") from error
    except TemplateSyntaxError as error:
        raise ValueError(f"{path}:{error.lineno}: not a Jinja template: {error.message}") from error
    if "messages" not in text:
        raise ValueError(f"{path}: a chat template must write the messages, this one never names them")
    return text


def read_date(text: str | None) -> date | None:
    """Read ``data.template_date``.

    Raises:
        ValueError: the text is no date.

    >>> read_date("2024-07-26")
    datetime.date(2024, 7, 26)
    """
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"data.template_date is {shown(text)}; expected a date such as 2024-07-26") from None


class _Generation(Extension):
    """Accept the tag with which other trainers mark the assistant's turns; it produces no text."""

    tags = {"generation"}

    @override
    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True)
class Piece:
    """A stretch of text and its origin: control tokens count in a template, and are plain text in data."""

    text: str
    template: bool = False


Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class Encoder:
    """Encode text so that data never becomes a control token, whatever it spells.

    Args:
        tokenizer: a fast tokenizer with EOS.
        date: the day that a chat template is told if it asks for the date; None for today.
    """

    tokenizer: PreTrainedTokenizerFast
    date: date | None = None

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ValueError("tokenizer has no EOS; set eos_token")

    def __call__(self, texts: Sequence[Pieces]) -> list[list[int]]:
        """Encode texts; the pieces of a text are encoded separately and concatenated.

        Raises:
            ValueError: the tokenizer makes control tokens of plain text even when told not to.
        """
        pieces = [piece for text in texts for piece in text]
        ids: dict[Piece, list[int]] = {}
        for template in (False, True):
            distinct = list(dict.fromkeys(piece for piece in pieces if piece.template is template))
            ids.update(zip(distinct, self._encode([piece.text for piece in distinct], template), strict=True))
        return [[token for piece in text for token in ids[piece]] for text in texts]

    def _encode(self, texts: list[str], template: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded: list[list[int]] = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=not template,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        if not template:
            for text, row in zip(texts, encoded, strict=True):
                if not self.control_ids.isdisjoint(row):
                    raise ValueError(f"this tokenizer cannot keep text from control tokens: {shown(text)}")
        return encoded

    @property
    def pad(self) -> int:
        """Padding id; EOS if the tokenizer has no padding token."""
        own = self.tokenizer.pad_token_id
        return self.end if own is None else int(own)

    @property
    def end(self) -> int:
        """Id of the end-of-sequence token."""
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def template(self) -> str | None:
        """The default chat template; None for a tokenizer without one."""
        return str(self.tokenizer.get_chat_template()) if self.tokenizer.chat_template else None

    @cached_property
    def probed(self) -> dict[Any, Any]:
        """What is known of the chat template from conversations rendered before, by kind of conversation."""
        return {}

    @property
    def reads_clock(self) -> bool:
        """Whether the chat template asks for the date."""
        return self.template is not None and "strftime_now" in self.template

    @property
    def template_hash(self) -> str | None:
        """SHA-256 of the chat template; None for a tokenizer without one."""
        return None if self.template is None else hashlib.sha256(self.template.encode()).hexdigest()

    @cached_property
    def start(self) -> list[int]:
        """Ids that the tokenizer puts in front of every text: its BOS, or nothing."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        starts = range(len(whole) - len(bare) + 1)
        return list(whole[: next((start for start in starts if whole[start : start + len(bare)] == bare), 0)])

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids that only a template or this package may produce; the unknown token is not among them."""
        added = self.tokenizer.added_tokens_decoder
        marked = {number for number, token in added.items() if token.special} | set(self.tokenizer.all_special_ids)
        return frozenset(marked - {self.tokenizer.unk_token_id})

    @cached_property
    def control_text(self) -> re.Pattern[str]:
        """Pattern that matches the text of any control token."""
        tokens = set(self.tokenizer.convert_ids_to_tokens(sorted(self.control_ids)))
        longest_first = sorted(tokens, key=lambda token: (-len(token), token))
        return re.compile("|".join(re.escape(token) for token in longest_first))

    def without_end(self, text: str) -> str:
        """Remove EOS from the end of a text, also repeated or surrounded by blanks."""
        eos = str(self.tokenizer.eos_token)
        kept = end = len(text)
        while True:
            while end and text[end - 1].isspace():
                end -= 1
            if not text.endswith(eos, 0, end):
                return text[:kept]
            kept = end = end - len(eos)

    def without_start(self, text: str) -> str:
        """Remove BOS from the start of a text, if the tokenizer uses one."""
        bos = "".join(self.tokenizer.convert_ids_to_tokens(self.start))
        kept = 0
        while bos and text.startswith(bos, kept):
            kept += len(bos)
        return text[kept:]
