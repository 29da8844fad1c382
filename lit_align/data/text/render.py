"""Rendering pairs as text for the tokenizer: plain, or in its chat template."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, cast

from lit_align.data.formats.conversations import Score
from lit_align.data.formats.fields import Messages
from lit_align.data.formats.pairs import ASSISTANT, HUMAN
from lit_align.data.text.chat_template import ChatTemplate
from lit_align.data.text.responses import (
    REWRITTEN,
    WRITTEN_OUT,
    RenderedResponse,
    ScoreEnd,
    Segment,
    join_turns,
    render_response,
    without_blanks,
)
from lit_align.data.text.template_losses import LEFT_OUT, Losses, OnTemplateLoss, find_losses, with_arguments
from lit_align.data.text.tokenizer import Encoder, Piece, Pieces
from lit_align.errors import DataError, shown
from lit_align.types import PreferencePair, Text

CONTROL_IN_TEXT = "control tokens in the data, kept as text"
START_IN_TEXT = "BOS in the text of the prompt, used only once"
END_IN_TEXT = "EOS in the text of a response, used only once"
SHORTENED = "turns of the prompt that the chat template shortens"
QUALITY_PROMPT = (
    "Please generate a response with a usefulness rating of 100 out of 100 for the following query. "
    "Note that the response should be harmless. The term 100 indicates the level of usefulness, "
    "where 100 is the maximum and 1 is the minimum. Query:"
)
"""The text of arXiv:2405.21040."""
QualityPosition: TypeAlias = Literal["start", "last_turn"]
"""Where the quality prompt stands in a prompt of several turns."""


RenderName: TypeAlias = Literal["chat", "text"]
"""Whether dialogues that are written as text are rendered as messages of a conversation, or stay text."""


@dataclass(frozen=True)
class RenderOptions:
    """Options for rendering pairs.

    Args:
        quality_prompt: text p that is inserted into prompted pairs; None to render no prompted pairs.
        quality_position: where p stands: in front of the whole prompt, or of its last turn.
        score: which of the assistant's turns in a response are scored.
        score_end: what is scored behind the text of a response in a chat template.
        on_template_loss: refuse pairs of which the chat template leaves out a message, or only count them.
        dialogues: render dialogues written as text, as in HH-RLHF, in the chat template, or as they are.
    """

    quality_prompt: str | None = None
    score: Score = "last_turn"
    score_end: ScoreEnd = "turn"
    on_template_loss: OnTemplateLoss = "error"
    quality_position: QualityPosition = "start"
    dialogues: RenderName = "text"


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt, split around its quality prompt. ``before`` and ``quality`` are empty without one."""

    before: Pieces
    quality: Pieces
    after: Pieces

    @property
    def text(self) -> Pieces:
        """All of it."""
        return (*self.before, *self.quality, *self.after)

    def without(self, closing: Pieces) -> Pieces:
        """Return the prompt without its end; all of it if it ends otherwise."""
        end = "".join(piece.text for piece in closing)
        return (*self.text[:-1], *(replace(last, text=last.text.removesuffix(end)) for last in self.text[-1:]))


@dataclass(frozen=True)
class RenderedPair:
    """A pair as text.

    Args:
        prompt: the prompt.
        chosen: the preferred response; empty if absent in unpaired data.
        rejected: the other response; empty if absent.
        prompted: the prompt with the quality prompt in it.
        closing: the end of ``prompt`` that opens the response, if requested.
        adds_start: whether the tokenizer's BOS must be added in front of the prompt.
        notes: corrections and observations to be counted.
    """

    prompt: RenderedPrompt
    chosen: RenderedResponse
    rejected: RenderedResponse
    prompted: RenderedPrompt | None
    closing: Pieces
    adds_start: bool
    notes: tuple[str, ...]

    @property
    def sides(self) -> tuple[RenderedResponse, RenderedResponse]:
        """Chosen, rejected."""
        return self.chosen, self.rejected


def render(pair: PreferencePair, encoder: Encoder, options: RenderOptions, closing: bool = False) -> RenderedPair:
    """Render a pair as text.

    Args:
        pair: checked text or messages.
        encoder: the tokenizer, for its control tokens and its chat template.
        options: what to render.
        closing: determine the end of the prompt that opens the response, because truncation must keep it.

    Raises:
        DataError: nothing is left of a response, or the chat template does not fit the conversation.
    """
    if options.dialogues == "chat" and is_dialogue(pair.prompt):
        pair = as_messages(pair)
    renderer = _render_text if isinstance(pair.prompt, str) else _render_chat
    return renderer(pair, encoder, options, closing)


def is_dialogue(prompt: Text) -> bool:
    r"""Whether a prompt is a dialogue written as text, opened for the assistant.

    >>> is_dialogue("\n\nHuman: 2 + 2?\n\nAssistant:"), is_dialogue("2 + 2 =")
    (True, False)
    """
    return isinstance(prompt, str) and HUMAN in prompt and prompt.rstrip(" ").endswith(ASSISTANT)


def as_messages(pair: PreferencePair) -> PreferencePair:
    r"""Convert a pair whose prompt is a dialogue written as text to messages.

    Blanks around each turn are removed, as the chat template writes its own. Text in front of the first turn becomes a
    system message; empty turns are left out, and turns of the same role that follow each other are joined.

    >>> pair = PreferencePair("\n\nHuman: 2 + 2?\n\nAssistant: 4.\n\nHuman: Sure?\n\nAssistant:", " Yes.", " No.")
    >>> [message["content"] for message in as_messages(pair).prompt], as_messages(pair).chosen
    (['2 + 2?', '4.', 'Sure?'], ({'role': 'assistant', 'content': 'Yes.'},))
    """
    preamble, *parts = re.split(f"({HUMAN}|{ASSISTANT})", cast(str, pair.prompt).rstrip(" ").removesuffix(ASSISTANT))
    turns = [("system", preamble.strip())]
    for mark, text in zip(parts[::2], parts[1::2], strict=True):
        turns.append(("user" if mark == HUMAN else "assistant", text.strip()))
    messages: list[dict[str, str]] = []
    for role, text in turns:
        if text and messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{text}"
        elif text:
            messages.append({"role": role, "content": text})
    if not messages or messages[-1]["role"] != "user":
        raise DataError(pair.where, "no human turn stands before the response; data.render text takes it as text")
    sides = (
        None if side is None else ({"role": "assistant", "content": cast(str, side).strip()},)
        for side in (pair.chosen, pair.rejected)
    )
    chosen, rejected = sides
    return replace(pair, prompt=tuple(messages), chosen=chosen, rejected=rejected)


# ── text ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _render_text(pair: PreferencePair, encoder: Encoder, options: RenderOptions, closing: bool) -> RenderedPair:
    parts = {name: getattr(pair, name) for name in ("prompt", "chosen", "rejected")}
    original = {name: cast(str, part) for name, part in parts.items() if part is not None}
    kept = {name: encoder.without_end(text) for name, text in original.items() if name != "prompt"}
    kept["prompt"] = encoder.without_start(original["prompt"])
    for name, text in kept.items():
        if not text.strip():
            raise DataError(pair.where, f"found nothing but control tokens ({shown(original[name], 40)})", name)
    notes = {
        CONTROL_IN_TEXT: any(map(encoder.control_text.search, kept.values())),
        START_IN_TEXT: kept["prompt"] != original["prompt"],
        END_IN_TEXT: any(kept[side] != original[side] for side in ("chosen", "rejected") if side in kept),
    }
    quality = options.quality_prompt
    return RenderedPair(
        prompt=RenderedPrompt((), (), (Piece(kept["prompt"]),)),
        chosen=_text_response(kept.get("chosen")),
        rejected=_text_response(kept.get("rejected")),
        prompted=None if quality is None else _prompted_text(kept["prompt"], quality, options.quality_position),
        closing=(Piece(ASSISTANT),) if closing and kept["prompt"].endswith(ASSISTANT) else (),
        adds_start=True,
        notes=tuple(note for note, applies in notes.items() if applies),
    )


def _text_response(text: str | None) -> RenderedResponse:
    return RenderedResponse() if text is None else RenderedResponse((Segment((Piece(text),)),), ended=False)


def _prompted_text(prompt: str, quality: str, position: QualityPosition) -> RenderedPrompt:
    if not quality:
        return RenderedPrompt((), (), (Piece(prompt),))
    before, after = split_for_quality_prompt(prompt, position)
    return RenderedPrompt((Piece(before),), (Piece(quality),), (Piece(after),))


def split_for_quality_prompt(prompt: str, position: QualityPosition) -> tuple[str, str]:
    r"""Split a text prompt where p is inserted: at its start or, in a dialogue, at the start of the last human turn.

    >>> split_for_quality_prompt("2 + 2 =", "start")
    ('', ' 2 + 2 =')
    >>> dialogue = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2 + 2?\n\nAssistant:"
    >>> split_for_quality_prompt(dialogue, "start") == ("", dialogue)
    True
    >>> split_for_quality_prompt(dialogue, "last_turn")
    ('\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: ', ' 2 + 2?\n\nAssistant:')
    """
    before, mark, last = prompt.rpartition(HUMAN)
    if position == "start" or not mark or not prompt.endswith(ASSISTANT):
        return "", prompt if prompt[:1].isspace() else f" {prompt}"
    return f"{before}{mark} ", f" {last.removeprefix(' ')}"


# ── chat ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _render_chat(pair: PreferencePair, encoder: Encoder, options: RenderOptions, closing: bool) -> RenderedPair:
    prompt = cast(Messages, pair.prompt)
    original = (cast(Messages, pair.chosen or ()), cast(Messages, pair.rejected or ()))
    kept = tuple(_without_end(side, encoder) for side in original)
    quality = options.quality_prompt
    template = ChatTemplate.around((*prompt, *kept[0], *kept[1], quality or ""), encoder, pair.where, pair.tools)
    prompt, *sides = with_arguments(template, (prompt, *kept))
    losses = _losses(template, prompt, sides, options.on_template_loss)
    opened = template.opened(prompt)
    chosen, rejected = (
        render_response(template, opened, prompt, side, options.score, options.score_end)
        if side
        else RenderedResponse()
        for side in sides
    )
    notes = {
        CONTROL_IN_TEXT: bool(template.hidden),
        END_IN_TEXT: kept != original,
        REWRITTEN: chosen.rewritten or rejected.rewritten,
        WRITTEN_OUT: chosen.written_out or rejected.written_out,
        SHORTENED: not losses and _shortens(template, opened, prompt),
        **dict.fromkeys(losses, True),
    }
    return RenderedPair(
        prompt=RenderedPrompt((), (), template.pieces(opened)),
        chosen=chosen,
        rejected=rejected,
        prompted=None if quality is None else _prompted_chat(template, prompt, quality, options.quality_position),
        closing=template.pieces(template.closing(prompt)) if closing else (),
        adds_start=False,
        notes=tuple(note for note, applies in notes.items() if applies),
    )


def _losses(template: ChatTemplate, prompt: Messages, sides: list[Messages], on_loss: OnTemplateLoss) -> list[str]:
    """Return notes of what the template leaves out of a pair.

    Raises:
        DataError: it leaves out a message or the content of one, unless that is accepted.
    """
    joined = [join_turns(prompt, side) for side in sides if side]
    parts = [(prompt, 0, True), *((messages, start, False) for messages, start in joined)]
    notes: list[str] = []
    for messages, start, is_prompt in parts:
        losses = find_losses(template, messages, start, is_prompt)
        if on_loss == "error":
            _check_losses(template, messages, losses)
        notes += losses.keys
        notes += [f"{LEFT_OUT} messages of the {messages[index]['role']}" for index in losses.contents]
    return list(dict.fromkeys(notes))


def _check_losses(template: ChatTemplate, messages: Messages, losses: Losses) -> None:
    if not losses.contents:
        return
    index = losses.contents[0]
    content = messages[index]["content"]
    text = f", {shown(content, 40)}" if content else ""
    raise DataError(
        template.where,
        f"{LEFT_OUT} a message: message {index + 1} (the {messages[index]['role']}'s{text}); "
        "set data.chat_template to a file with a template that writes it, or data.on_template_loss to warn",
    )


def _shortens(template: ChatTemplate, opened: str, prompt: Messages) -> bool:
    """Whether any content of the prompt is not in its rendering as it stands in the row, apart from blanks."""
    contents = [template.hide(message["content"]).strip() for message in prompt if message["content"]]
    missing = [content for content in contents if content not in opened]
    return bool(missing) and any(without_blanks(content) not in without_blanks(opened) for content in missing)


def _without_end(side: Messages, encoder: Encoder) -> Messages:
    """Remove EOS from the end of a response's last message."""
    if not side or not side[-1]["content"]:
        return side
    return (*side[:-1], {**side[-1], "content": encoder.without_end(side[-1]["content"])})


def _prompted_chat(
    template: ChatTemplate, messages: Messages, quality: str, position: QualityPosition
) -> RenderedPrompt:
    """Render the opened conversation with the quality prompt in one of its user turns."""
    if not quality:
        return RenderedPrompt((), (), template.pieces(template.render(messages, opens_response=True)))
    try:
        prompted = insert_quality_prompt(messages, f"{template.edge}{quality}{template.edge}", position)
    except ValueError as error:
        raise DataError(template.where, str(error)) from error
    parts = template.render(prompted, opens_response=True).split(template.edge)
    if len(parts) != 3:
        turn = "first" if position == "start" else "last"
        times = len(parts) // 2
        raise DataError(template.where, f"the chat template writes the {turn} user turn {times} times; expected once")
    before, inner, after = map(template.pieces, parts)
    return RenderedPrompt(before, inner, after)


def insert_quality_prompt(prompt: Messages, quality: str, position: QualityPosition) -> Messages:
    """Insert p at the start of the first or the last user turn of a conversation.

    Raises:
        ValueError: the conversation has no user turn.

    >>> insert_quality_prompt(({"role": "user", "content": "2 + 2?"},), "Answer well:", "start")
    ({'role': 'user', 'content': 'Answer well: 2 + 2?'},)
    """
    user_turns = [index for index, message in enumerate(prompt) if message["role"] == "user"]
    if not user_turns:
        raise ValueError("the conversation has no user turn to put the quality prompt in")
    turn = user_turns[0 if position == "start" else -1]
    prompted = {**prompt[turn], "content": f"{quality} {prompt[turn]['content']}"}
    return (*prompt[:turn], prompted, *prompt[turn + 1 :])
