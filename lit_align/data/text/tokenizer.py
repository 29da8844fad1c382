"""Loading tokenizers, and encoding text so that data never becomes a control token."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any, NamedTuple

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase
from typing_extensions import override

from lit_align.errors import shown
from lit_align.files import at_home
from lit_align.locate import locate_tokenizer

CONTEXTS = ("\n", "a", "1", ".", "x")
"""Texts that others can continue; at least one of them merges with nothing that follows."""


def load_tokenizer(
    name: str, revision: str | None = None, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer with an end-of-sequence token.

    Raises:
        FileNotFoundError: the folder or the tokenizer in it does not exist, or the hub cannot be reached. A path is
            never looked up on the hub.
        ValueError: the tokenizer has no EOS, or the template is invalid.
    """
    place, gguf = locate_tokenizer(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False, **gguf)
    except OSError as error:
        raise FileNotFoundError(f"tokenizer {name} cannot be read: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{place}: tokenizer has no EOS; set eos_token")
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    return tokenizer


def read_template(path: str) -> str:
    """Read a chat template from a file.

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


class ControlTokenError(ValueError):
    """Data that a tokenizer can only encode as control tokens."""


class _Section(NamedTuple):
    """A stretch of a text that is encoded in one call; ``continues`` is true of data behind a control token."""

    text: str
    template: bool
    continues: bool = False


@dataclass(frozen=True)
class Encoder:
    """Encode text so that data never becomes a control token, whatever it spells.

    Args:
        tokenizer: a tokenizer with EOS.
        date: the day that a chat template is told if it asks for the date; None for today.
    """

    tokenizer: PreTrainedTokenizerBase
    date: date | None = None

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ValueError("tokenizer has no EOS; set eos_token")

    def __call__(self, texts: Sequence[Pieces]) -> list[list[int]]:
        """Encode texts, each as a whole: its pieces see one another, as in one call of the tokenizer.

        Raises:
            ControlTokenError: the tokenizer makes control tokens of plain text even when told not to.
        """
        sections = [self._sections(text) for text in texts]
        ids: dict[_Section, list[int]] = {}
        for template in (False, True):
            wanted = (each for text in sections for each in text if each.template is template and not each.continues)
            distinct = list(dict.fromkeys(wanted))
            ids.update(zip(distinct, self._encode([each.text for each in distinct], template), strict=True))
        for section in {section for text in sections for section in text if section.continues}:
            ids[section] = self._continuation(section.text)
        return [
            ids[text[0]] if len(text) == 1 else [token for each in text for token in ids[each]] for text in sections
        ]

    def after(self, context: str, texts: Sequence[Pieces]) -> list[list[int] | None]:
        """Encode texts as the continuation of a context, without what the tokenizer puts in front of a text.

        SentencePiece-like tokenizers put a blank there. Which context it is does not matter, as long as no token spans
        it and the text.

        Returns:
            The ids of each text; None where the tokenizer does not know the context, or a token spans both.
        """
        templates = [text[0].template if text else False for text in texts]
        contexts = self([(Piece(context, template),) for template in templates])
        wholes = self([(Piece(context, template), *text) for template, text in zip(templates, texts, strict=True)])
        unknown = self.tokenizer.unk_token_id
        return [
            whole[len(before) :] if before and before[-1] != unknown and whole[: len(before)] == before else None
            for before, whole in zip(contexts, wholes, strict=True)
        ]

    def _continuation(self, text: str) -> list[int]:
        """Encode data that stands behind a control token, where the tokenizer puts nothing in front of it."""
        pieces = (Piece(text),)
        known = (ids for context in CONTEXTS if (ids := self.after(context, [pieces])[0]) is not None)
        return next(known, None) or self([pieces])[0]

    def _sections(self, text: Pieces) -> tuple[_Section, ...]:
        """Split a text at control tokens of the template, around each stretch in which data spells one.

        The tokenizer itself splits texts there. Every other stretch is encoded together with its neighbours.
        """
        if len({piece.template for piece in text}) <= 1:
            return (_Section("".join(piece.text for piece in text), text[0].template),) if text else ()
        sections: list[_Section] = []
        template = ""
        for control, stretch, has_data in self._stretches(text):
            template += control
            if not has_data:
                template += stretch
                continue
            if template:
                sections.append(_Section(template, template=True))
            sections.append(_Section(stretch, template=False, continues=bool(sections) and not self._restarts))
            template = ""
        return (*sections, _Section(template, template=True)) if template else tuple(sections)

    def _stretches(self, text: Pieces) -> Iterator[tuple[str, str, bool]]:
        """Yield each control token of the template, the text up to the next one, and whether data spells one in it.

        The first control token is '', for the start of the text.
        """
        control, stretch, has_data = "", "", False
        for piece in text:
            if not piece.template:
                stretch, has_data = stretch + piece.text, True
                continue
            end = 0
            for match in self.control_text.finditer(piece.text):
                yield control, self._stripped(control, stretch + piece.text[end : match.start()], match[0]), has_data
                control, stretch, has_data, end = match[0], "", False, match.end()
            stretch += piece.text[end:]
        yield control, self._stripped(control, stretch, ""), has_data

    def _stripped(self, before: str, stretch: str, after: str) -> str:
        """Remove blanks that the control tokens around a stretch of text take away."""
        added = self._added_tokens
        stretch = stretch.lstrip() if before in added and added[before].rstrip else stretch
        return stretch.rstrip() if after in added and added[after].lstrip else stretch

    @cached_property
    def keeps_blanks(self) -> bool:
        """Whether several blanks are different from one."""
        single, double = self._encode(["a a", "a  a"], template=False)
        return single != double

    @cached_property
    def _added_tokens(self) -> Mapping[str, AddedToken]:
        return {token.content: token for token in self.tokenizer.added_tokens_decoder.values()}

    @cached_property
    def _restarts(self) -> bool:
        """Whether text behind a control token is encoded like a text of its own."""
        whole, alone = self._encode([f"{self.tokenizer.eos_token}a", "a"], template=True)
        return whole[1:] == alone

    def _encode(self, texts: list[str], template: bool) -> list[list[int]]:
        if not texts:
            return []
        off = ("add_special_tokens", "return_attention_mask", "return_token_type_ids", "verbose")
        options = {**dict.fromkeys(off, False), "split_special_tokens": not template}
        encoded: list[list[int]] = self.tokenizer(texts, **options)["input_ids"]
        if not template:
            for number, ids in enumerate(encoded):
                if not self.control_ids.isdisjoint(ids):
                    encoded[number] = self._split_control(texts[number])
        return encoded

    def _split_control(self, text: str) -> list[int]:
        """Encode data in which the tokenizer finds control tokens although told not to, split inside of each.

        Unigram tokenizers do: their vocabulary has control tokens like any others.
        """
        places = [0, *(match.start() + 1 for match in self.control_text.finditer(text)), len(text)]
        parts = [text[start:end] for start, end in zip(places, places[1:], strict=False)]
        if text in parts:
            raise ControlTokenError(f"this tokenizer cannot keep text from control tokens: {shown(text)}")
        return [*self([(Piece(parts[0]),)])[0], *(token for part in parts[1:] for token in self._continuation(part))]

    def decode(self, ids: Sequence[int]) -> str:
        """Convert ids to text, keeping control tokens and blanks."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decode_exactly(self, ids: Sequence[int]) -> str:
        """Convert ids to text, for comparison: a tokenizer that cannot decode gives its tokens."""
        if self.tokenizer.is_fast and self.tokenizer.backend_tokenizer.decoder is None:
            return "".join(self.tokenizer.convert_ids_to_tokens(list(ids)))
        return self.decode(ids)

    def decode_response(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Convert the ids of a response to its text behind a prompt.

        Alone, a response of a SentencePiece-like tokenizer loses the blank that it begins with.
        """
        before, whole = self.decode(prompt), self.decode([*prompt, *ids])
        return whole[len(before) :] if whole.startswith(before) else self.decode(ids)

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
        """Ids that only a template or this package may produce; the unknown token is not among them.

        It is where it also begins or ends texts, as in GPT-2.
        """
        tokenizer = self.tokenizer
        added = tokenizer.added_tokens_decoder
        marked = {number for number, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        return frozenset(marked - ({tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id}))

    @cached_property
    def control_text(self) -> re.Pattern[str]:
        """Pattern that matches the text of any control token, and of the unknown token."""
        tokens = set(self.tokenizer.convert_ids_to_tokens(sorted(self.control_ids)))
        tokens |= {self.tokenizer.unk_token} - {None}
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
