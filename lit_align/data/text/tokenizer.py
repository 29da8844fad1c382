"""A tokenizer is loaded from a local folder or the hub, and knows which of its tokens are control tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_align import testbed
from lit_align.errors import shown
from lit_align.files import at_home

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def load_tokenizer(
    name: str, revision: str | None = None, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """A fast tokenizer with an end-of-sequence token.

    Args:
        name: local folder, hub name ``owner/name``, or ``testbed:policy``.
        revision: branch, tag or commit hash of a hub tokenizer.
        chat_template: file with a chat template (Jinja) that takes the place of the tokenizer's own.

    Raises:
        FileNotFoundError: the folder, or the tokenizer in it, is not there, or a hub that cannot be reached; a path is
            never looked up on the hub.
        ValueError: the tokenizer is not a fast one, or has no EOS, or the template is not one.
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
    """The chat template in a file.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no text, or no Jinja; names the line.
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


class _Generation(Extension):
    """Knows the tag that marks the assistant's turns for other trainers; it writes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The lines between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True)
class Piece:
    """A stretch of text and who wrote it: in a template's, control tokens are meant; in data they are only text."""

    text: str
    template: bool = False


Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class Encoder:
    """Text to ids, so that data never becomes a control token, whatever it spells.

    Args:
        tokenizer: a fast tokenizer with EOS.
    """

    tokenizer: PreTrainedTokenizerFast

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ValueError("tokenizer has no EOS; set eos_token")

    def __call__(self, spellings: Sequence[Pieces]) -> list[list[int]]:
        """Ids of each spelling: its pieces encoded apart, one after the other.

        Raises:
            ValueError: the tokenizer makes control tokens of plain text even when told not to.
        """
        pieces = [piece for spelling in spellings for piece in spelling]
        ids: dict[Piece, list[int]] = {}
        for template in (False, True):
            distinct = list(dict.fromkeys(piece for piece in pieces if piece.template is template))
            ids.update(zip(distinct, self._encode([piece.text for piece in distinct], template), strict=True))
        return [[token for piece in spelling for token in ids[piece]] for spelling in spellings]

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
        """Id to pad with; EOS where the tokenizer has no token of its own for it."""
        own = self.tokenizer.pad_token_id
        return self.end if own is None else int(own)

    @property
    def end(self) -> int:
        """Id of the end-of-sequence token."""
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def template(self) -> str | None:
        """The chat template, the one for tools aside; None for a tokenizer without any."""
        return str(self.tokenizer.get_chat_template()) if self.tokenizer.chat_template else None

    @cached_property
    def start(self) -> list[int]:
        """What the tokenizer puts in front of every text: its BOS, or nothing."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        places = range(len(whole) - len(bare) + 1)
        return list(whole[: next((place for place in places if whole[place : place + len(bare)] == bare), 0)])

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids that only a template, or this package, may write; the unknown token is not among them."""
        added = self.tokenizer.added_tokens_decoder
        marked = {number for number, token in added.items() if token.special} | set(self.tokenizer.all_special_ids)
        return frozenset(marked - {self.tokenizer.unk_token_id})

    @cached_property
    def control_text(self) -> re.Pattern[str]:
        """Matches the spelling of any control token."""
        spelled = set(self.tokenizer.convert_ids_to_tokens(sorted(self.control_ids)))
        longest_first = sorted(spelled, key=lambda token: (-len(token), token))
        return re.compile("|".join(re.escape(token) for token in longest_first))

    def without_end(self, text: str) -> str:
        """The text without EOS spelled at its end, be it several times, with blanks between or behind."""
        spelled = str(self.tokenizer.eos_token)
        kept = end = len(text)
        while True:
            while end and text[end - 1].isspace():
                end -= 1
            if not text.endswith(spelled, 0, end):
                return text[:kept]
            kept = end = end - len(spelled)

    def without_start(self, text: str) -> str:
        """The text without BOS spelled at its start, if the tokenizer uses one."""
        spelled = "".join(self.tokenizer.convert_ids_to_tokens(self.start))
        kept = 0
        while spelled and text.startswith(spelled, kept):
            kept += len(spelled)
        return text[kept:]
