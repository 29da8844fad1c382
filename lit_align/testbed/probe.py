"""How well a policy summarises: its sampled responses, counted against their posts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_align.testbed.truth import tally
from lit_align.testbed.world import FILLERS


@dataclass(frozen=True)
class Skill:
    """What a set of responses is worth.

    Args:
        precision: share of the distinct facts told that are correct.
        coverage: share of the facts stated that are told.
        repeated: repeated facts per response.
        filler: filler sentences per response.
        words: words per response.
        score: mean true score.
    """

    precision: float
    coverage: float
    repeated: float
    filler: float
    words: float
    score: float


def skill(prompts: Sequence[str], responses: Sequence[str]) -> Skill:
    """Counts responses against their posts.

    >>> skill(["She plays piano. She keeps bees."], [" She keeps bees."])
    Skill(precision=1.0, coverage=0.5, repeated=0.0, filler=0.0, words=3.0, score=0.85)
    """
    tallies = [tally(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    correct = sum(counts.correct for counts in tallies)
    return Skill(
        precision=correct / max(1, correct + sum(counts.wrong for counts in tallies)),
        coverage=correct / max(1, sum(counts.stated for counts in tallies)),
        repeated=sum(counts.repeated for counts in tallies) / len(tallies),
        filler=sum(response.count(sentence) for response in responses for sentence in FILLERS) / len(tallies),
        words=sum(counts.words for counts in tallies) / len(tallies),
        score=sum(counts.score for counts in tallies) / len(tallies),
    )


@torch.no_grad()
def respond(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], seed: int = 0
) -> list[str]:
    """One response of at most 128 tokens to each prompt, sampled at temperature 1 from the whole distribution."""
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    longest = max(len(ids) for ids in encoded)
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in encoded])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded])
    device = policy.device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = policy.generate(  # type: ignore[operator]
            ids.to(device),
            attention_mask=mask.to(device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=128,
            pad_token_id=tokenizer.pad_token_id,
        )
    return list(tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True))
