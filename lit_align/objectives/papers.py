"""The publications that the parts implement."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from typing import TypeVar

Cited = TypeVar("Cited")


@dataclass(frozen=True)
class Paper:
    """The data of a citation.

    Args:
        authors: the first author's family name followed by "et al.", or the only author.
        title: title as printed.
        arxiv: arXiv identifier; None for what is not on arXiv.
        published: year of what is not on arXiv.
        url: address of what is not on arXiv.

    >>> print(DPO.citation())
    Rafailov et al. (2023). Direct Preference Optimization: Your Language Model is Secretly a Reward Model.
    arXiv:2305.18290
    """

    authors: str
    title: str
    arxiv: str | None = None
    published: int = 0
    url: str | None = None

    @property
    def year(self) -> int:
        """Year of the first version, which begins an arXiv identifier."""
        return 2000 + int(self.arxiv[:2]) if self.arxiv else self.published

    @property
    def key(self) -> str:
        """BibTeX key: family name, year and the first word of the title but for articles."""
        words = re.split(r"[\s-]+", self.title.lower())
        first = next(word for word in words if word not in {"a", "an", "on", "the"})
        name = self.authors.removesuffix(" et al.").lower()
        return f"{_letters(name)}{self.year}{_letters(first)}"

    @property
    def link(self) -> str:
        """Address of the paper."""
        return self.url or f"https://arxiv.org/abs/{self.arxiv}"

    def citation(self) -> str:
        """Return the reference in one line."""
        where = f"arXiv:{self.arxiv}" if self.arxiv else self.link
        return f"{self.authors} ({self.year}). {self.title}. {where}"

    def bibtex(self) -> str:
        r"""Return the reference as a BibTeX entry; the double braces keep the title's capitals.

        >>> print(CDPO.bibtex())
        @misc{mitchell2023note,
          title = {{A note on DPO with noisy preferences \& relationship to IPO}},
          author = {Mitchell},
          year = {2023},
          url = {https://ericmitchell.ai/cdpo.pdf},
        }
        """
        entries = {
            "title": f"{{{self.title}}}".replace("&", r"\&"),
            "author": self.authors.replace(" et al.", " and others"),
            "year": str(self.year),
            "eprint": self.arxiv,
            "archiveprefix": "arXiv" if self.arxiv else None,
            "url": self.link,
        }
        lines = [f"  {name} = {{{value}}}," for name, value in entries.items() if value]
        return "\n".join([f"@misc{{{self.key},", *lines, "}"])


def _letters(text: str) -> str:
    return re.sub("[^a-z]", "", text)


def papers_of(part: object) -> tuple[Paper, ...]:
    """List the papers that a part and the parts inside it come from, outermost first, each once.

    A part names its paper in a class attribute ``source``, and a preset may name further ones (`cite`). The walk
    follows the fields of dataclasses and the items of tuples, so it also reaches parts that wrap other parts, and
    parts from outside this package.

    Args:
        part: an objective, or any part of one.

    >>> from lit_align.objectives import sr_dpo
    >>> [paper.arxiv for paper in papers_of(sr_dpo())]
    ['2305.18290', '2405.21040']
    """
    papers = [*getattr(part, _CITED, ())]
    source = getattr(part, "source", None)
    if isinstance(source, Paper):
        papers.append(source)
    if isinstance(part, tuple):
        papers += [paper for inner in part for paper in papers_of(inner)]
    if is_dataclass(part):
        papers += [paper for field in fields(part) for paper in papers_of(getattr(part, field.name))]
    return tuple(dict.fromkeys(papers))


_CITED = "_cited"


def cite(part: Cited, *papers: Paper) -> Cited:
    """Return the same part, which also names the papers that its parts were put together in.

    A citation is a remark and no field: the part equals what it was, is configured and printed as before, and what is
    made of it with ``dataclasses.replace`` is something else and names its parts' papers only.

    Args:
        part: what a preset made.
        papers: where its combination was published.

    >>> from lit_align.objectives import dpo
    >>> remarked = cite(dpo(), RPO)
    >>> [paper.arxiv for paper in papers_of(remarked)], remarked == dpo()
    (['2404.19733', '2305.18290'], True)
    """
    remarked = copy(part)
    object.__setattr__(remarked, _CITED, papers)  # frozen parts are values; this is not one of theirs
    return remarked


DPO = Paper(
    "Rafailov et al.", "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", "2305.18290"
)
CDPO = Paper(
    "Mitchell",
    "A note on DPO with noisy preferences & relationship to IPO",
    published=2023,
    url="https://ericmitchell.ai/cdpo.pdf",
)
IPO = Paper(
    "Azar et al.", "A General Theoretical Paradigm to Understand Learning from Human Preferences", "2310.12036"
)
AVERAGING = Paper("Grinsztajn et al.", "Averaging log-likelihoods in direct alignment", "2406.19188")
LD_DPO = Paper("Liu et al.", "Length Desensitization in Direct Preference Optimization", "2409.06411")
R_DPO = Paper("Park et al.", "Disentangling Length from Quality in Direct Preference Optimization", "2403.19159")
SIMPO = Paper("Meng et al.", "SimPO: Simple Preference Optimization with a Reference-Free Reward", "2405.14734")
SLIC = Paper("Zhao et al.", "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", "2305.10425")
RSO = Paper("Liu et al.", "Statistical Rejection Sampling Improves Preference Optimization", "2309.06657")
SELF_REFINEMENT = Paper(
    "Yu et al.", "Direct Alignment of Language Models via Quality-Aware Self-Refinement", "2405.21040"
)
PREFERENCE_MATCHING = Paper(
    "Xiao et al.",
    "On the Algorithmic Bias of Aligning Large Language Models with RLHF: "
    "Preference Collapse and Matching Regularization",
    "2405.16455",
)
F_DPO = Paper(
    "Wang et al.",
    "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints",
    "2309.16240",
)
ROBUST = Paper("Chowdhury et al.", "Provably Robust DPO: Aligning Language Models with Noisy Feedback", "2403.00409")
EXO = Paper("Ji et al.", "Towards Efficient Exact Optimization of Language Model Alignment", "2402.00856")
DISCOPOP = Paper(
    "Lu et al.", "Discovering Preference Optimization Algorithms with and for Large Language Models", "2406.08414"
)
DPO_POSITIVE = Paper(
    "Pal et al.", "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive", "2402.13228"
)
BETA_DPO = Paper("Wu et al.", "β-DPO: Direct Preference Optimization with Dynamic β", "2407.08639")
CONFPO = Paper(
    "Yoon et al.",
    "ConfPO: Exploiting Policy Model Confidence for Critical Token Selection in Preference Optimization",
    "2506.08712",
)
HUMANLINE = Paper("Liu et al.", "Humanline: Online Alignment as Perceptual Loss", "2509.24207")
DPO_SHIFT = Paper(
    "Yang et al.", "DPO-Shift: Shifting the Distribution of Direct Preference Optimization", "2502.07599"
)
SIMPER = Paper(
    "Xiao et al.", "SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters", "2502.00883"
)
NCA = Paper("Chen et al.", "Noise Contrastive Alignment of Language Models with Explicit Rewards", "2402.05369")
BCO = Paper("Jung et al.", "Binary Classifier Optimization for Large Language Model Alignment", "2404.04656")
SPPO = Paper("Wu et al.", "Self-Play Preference Optimization for Language Model Alignment", "2405.00675")
APO = Paper(
    "D'Oosterlinck et al.",
    "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
    "2408.06266",
)
ORPO = Paper("Hong et al.", "ORPO: Monolithic Preference Optimization without Reference Model", "2403.07691")
CPO = Paper(
    "Xu et al.",
    "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
    "2401.08417",
)
RPO = Paper("Pang et al.", "Iterative Reasoning Preference Optimization", "2404.19733")
MPO = Paper(
    "Wang et al.",
    "Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference Optimization",
    "2411.10442",
)
SAMPO = Paper(
    "Lu et al.",
    "Eliminating Biased Length Reliance of Direct Preference Optimization via Down-Sampled KL Divergence",
    "2406.10957",
)
ODPO = Paper("Amini et al.", "Direct Preference Optimization with an Offset", "2402.10571")
KTO = Paper("Ethayarajh et al.", "KTO: Model Alignment as Prospect Theoretic Optimization", "2402.01306")
AOT = Paper("Melnyk et al.", "Distributional Preference Alignment of LLMs via Optimal Transport", "2406.05882")
WPO = Paper("Zhou et al.", "WPO: Enhancing RLHF with Weighted Preference Optimization", "2406.11827")
CPO_SIMPO = Paper(
    "Xu",
    "The joint of Contrastive Preference Optimization (CPO) & Simple Preference Optimization (SimPO)",
    published=2024,
    url="https://github.com/fe1ixxu/CPO_SIMPO",
)
ALPHA_PO = Paper("Gupta et al.", "AlphaPO: Reward Shape Matters for LLM Alignment", "2501.03884")
