"""The tokens that end a response, also where no response of the data shows them."""

from __future__ import annotations

from collections.abc import Iterable

from lit_align.data.text.chat_template import ChatTemplate, Messages
from lit_align.data.text.tokenizer import Encoder
from lit_align.errors import DataError
from lit_align.types import PreferencePair

_ANSWER = {"role": "assistant", "content": "."}


def template_stop_tokens(pairs: Iterable[PreferencePair], encoder: Encoder) -> frozenset[int]:
    """Return what the chat template ends an answer with, for conversations in which no whole response shows it.

    Args:
        pairs: conversations without a whole response, as text; the first one with messages is rendered.
        encoder: the tokenizer.
    """
    if encoder.template is None:
        return frozenset()
    for pair in pairs:
        if not isinstance(pair.prompt, str):
            return _of_template(pair, pair.prompt, encoder)
    return frozenset()


def _of_template(pair: PreferencePair, prompt: Messages, encoder: Encoder) -> frozenset[int]:
    """What would end an answer to a prompt; nothing where the template does not say."""
    messages = (*prompt, _ANSWER)
    template = ChatTemplate.around(messages, encoder, pair.where, pair.tools)
    try:
        around = template.around_content(messages, len(prompt))
    except DataError:
        return frozenset()
    if around is None:
        return frozenset()
    behind = around[1].rstrip()
    (ids,) = encoder([template.pieces(behind)])
    return frozenset({ids[-1] if template.ends_turn(behind) else encoder.end})
