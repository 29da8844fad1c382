"""The tokens that end a response, also where no response of the data shows them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_align.data.chat import ChatTemplate, Messages
from lit_align.data.errors import DataError
from lit_align.data.store import PairStore
from lit_align.data.tokenizer import Encoder
from lit_align.types import PreferencePair

_ANSWER = {"role": "assistant", "content": "."}


def end_tokens(store: PairStore, pairs: Sequence[PreferencePair], encoder: Encoder) -> frozenset[int]:
    """The last tokens of the whole responses; for conversations without any, what the template ends an answer with.

    Args:
        store: the pairs as ids.
        pairs: the same pairs as text.
        encoder: the tokenizer.
    """
    silent = [] if encoder.template is None else np.flatnonzero(~store.ended).tolist()
    for place in silent:
        pair = pairs[place]
        if not isinstance(pair.prompt, str):
            return store.end_tokens | _of_template(pair, pair.prompt, encoder)
    return store.end_tokens


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
