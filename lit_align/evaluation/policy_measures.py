r"""Entropy of a policy and its divergence from a reference, exactly, along sampled responses.

At each token of a response, the whole next-token distributions are compared and not only the sampled token:

$$\mathrm{KL} = \sum_t \sum_v \pi(v \mid x, y_{<t}) \log\frac{\pi(v \mid x, y_{<t})}{\pi_{ref}(v \mid x, y_{<t})}$$

The mean over responses that the policy has sampled is an unbiased estimate of the divergence of its responses, with
less noise than the mean log-ratio of the sampled tokens has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lit_align.models.lm_head.patch import output_head


@dataclass(frozen=True)
class PolicyRow:
    """Numbers of a policy along one response, in nats.

    Args:
        entropy: mean entropy of the next token.
        log_prob: of the response under the policy.
        kl: sum over tokens of the divergence from the reference; None without one.
    """

    entropy: float
    log_prob: float
    kl: float | None = None


@torch.no_grad()
def policy_rows(
    model: nn.Module,
    reference: nn.Module | None,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int = 8,
) -> list[PolicyRow]:
    """Compute entropy and divergence along responses.

    Args:
        model: the policy, in evaluation mode.
        reference: with the same tokens; None for none.
        sequences: ids of prompt and response of each; a response has a token or more.
        batch_size: responses per forward pass.
    """
    order = sorted(range(len(sequences)), key=lambda place: len(sequences[place][0]) + len(sequences[place][1]))
    results: dict[int, PolicyRow] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        part = [sequences[place] for place in places]
        policy = _next_token_log_probs(model, part)
        frozen = [None] * len(part) if reference is None else _next_token_log_probs(reference, part)
        for place, own, other in zip(places, policy, frozen, strict=True):
            results[place] = _row(own, other, sequences[place][1])
    return [results[place] for place in range(len(sequences))]


def _row(own: Tensor, other: Tensor | None, response: Sequence[int]) -> PolicyRow:
    probabilities = own.exp()
    entropy = -(probabilities * own.clamp_min(torch.finfo(own.dtype).min)).sum(-1)
    log_prob = own.gather(-1, torch.tensor(response, device=own.device)[:, None]).sum()
    kl = None
    if other is not None:
        terms = torch.where(probabilities > 0, probabilities * (own - other.to(own.device)), 0.0)
        kl = float(terms.sum())
    return PolicyRow(float(entropy.mean()), float(log_prob), kl)


def _next_token_log_probs(model: nn.Module, part: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
    """Return the log-probabilities of every id at each token of the responses, [token, id], in float32 or more.

    Logits are formed only where they predict a token of a response.
    """
    device = next(model.parameters()).device
    ids = [torch.tensor([*prompt, *response]) for prompt, response in part]
    batch = pad_sequence(ids, batch_first=True)
    attention = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    predicting = torch.zeros(batch.shape, dtype=torch.bool)
    for row, (prompt, response) in enumerate(part):
        predicting[row, len(prompt) - 1 : len(prompt) + len(response) - 1] = True
    head, places = output_head(model), predicting.to(device)
    with contextlib.nullcontext() if head is None else _inputs_at(head, places):
        logits = model(input_ids=batch.to(device), attention_mask=attention.to(device), use_cache=False).logits
    rows = logits[places] if head is None else logits[0]
    log_probs = rows.to(torch.promote_types(rows.dtype, torch.float32)).log_softmax(-1)
    return list(log_probs.split([len(response) for _, response in part]))


@contextmanager
def _inputs_at(head: nn.Module, places: Tensor) -> Iterator[None]:
    """Give an output head the hidden states at some places only, as one row.

    Args:
        head: of the model that is called.
        places: which of them, [row, token].
    """
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][places.to(inputs[0].device)][None],))
    try:
        yield
    finally:
        handle.remove()
