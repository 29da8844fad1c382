"""The true score as the part that callbacks and online rollouts ask for."""

from collections.abc import Sequence
from dataclasses import dataclass

from lit_align.testbed.truth import true_score
from lit_align.types import ResponseScore


@dataclass(frozen=True)
class TestbedScore(ResponseScore):
    """The known reward of the testbed; see ``true_score``.

    >>> TestbedScore()(["She plays piano. She keeps bees."], [" She keeps bees."])
    [0.85]
    """

    __test__ = False

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """One true score for each response.

        Raises:
            ValueError: if there are not as many prompts as responses.
        """
        return [true_score(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
