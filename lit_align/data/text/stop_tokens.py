"""Stop tokens of a chat template, for data in which no complete response shows them."""

from __future__ import annotations

from collections.abc import Iterable

from lit_align.data.formats.fields import Messages
from lit_align.data.text.chat_template import ChatTemplate
from lit_align.data.text.responses import join_turns
from lit_align.data.text.tokenizer import Encoder
from lit_align.errors import DataError
from lit_align.types import PreferencePair

_ANSWER = {"role": "assistant", "content": "."}


def template_stop_tokens(pairs: Iterable[PreferencePair], encoder: Encoder) -> frozenset[int]:
    """Return the token with which the chat template ends a response; empty if it cannot be determined.

    Args:
        pairs: pairs without a complete response; the first one with messages is rendered.
        encoder: the tokenizer.
    """
    if encoder.template is None:
        return frozenset()
    for pair in pairs:
        if not isinstance(pair.prompt, str):
            return _stop_tokens(pair, pair.prompt, encoder)
    return frozenset()


def _stop_tokens(pair: PreferencePair, prompt: Messages, encoder: Encoder) -> frozenset[int]:
    messages, last = join_turns(prompt, (_ANSWER,))
    template = ChatTemplate.around(messages, encoder, pair.where, pair.tools)
    try:
        around = template.around_content(messages, last)
    except DataError:
        return frozenset()
    if around is None:
        return frozenset()
    after = around[1].rstrip()
    after = after[: template.end_of_turn(after)]
    (ids,) = encoder([template.pieces(after)])
    return frozenset({ids[-1] if template.ends_turn(after) else encoder.end})
