"""The publications that the parts implement."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from typing import TypeVar

Part = TypeVar("Part")


@dataclass(frozen=True)
class Paper:
    """The data of a citation.

    Args:
        key: BibTeX key.
        title: title as printed.
        authors: the first author's family name followed by "et al.", or the only author.
        year: year of the first version.
        arxiv: arXiv identifier; None for what is not on arXiv.
        url: address, for what is not on arXiv.

    >>> print(DPO.citation())
    Rafailov et al. (2023). Direct Preference Optimization: Your Language Model is Secretly a Reward Model.
    arXiv:2305.18290
    """

    key: str
    title: str
    authors: str
    year: int
    arxiv: str | None = None
    url: str | None = None

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


def cite(part: Part, *papers: Paper) -> Part:
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
    key="rafailov2023direct",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    authors="Rafailov et al.",
    year=2023,
    arxiv="2305.18290",
)
CDPO = Paper(
    key="mitchell2023note",
    title="A note on DPO with noisy preferences & relationship to IPO",
    authors="Mitchell",
    year=2023,
    url="https://ericmitchell.ai/cdpo.pdf",
)
IPO = Paper(
    key="azar2023general",
    title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    authors="Azar et al.",
    year=2023,
    arxiv="2310.12036",
)
AVERAGING = Paper(
    key="grinsztajn2024averaging",
    title="Averaging log-likelihoods in direct alignment",
    authors="Grinsztajn et al.",
    year=2024,
    arxiv="2406.19188",
)
LD_DPO = Paper(
    key="liu2024length",
    title="Length Desensitization in Direct Preference Optimization",
    authors="Liu et al.",
    year=2024,
    arxiv="2409.06411",
)
R_DPO = Paper(
    key="park2024disentangling",
    title="Disentangling Length from Quality in Direct Preference Optimization",
    authors="Park et al.",
    year=2024,
    arxiv="2403.19159",
)
SIMPO = Paper(
    key="meng2024simpo",
    title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    authors="Meng et al.",
    year=2024,
    arxiv="2405.14734",
)
SLIC = Paper(
    key="zhao2023slic",
    title="SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
    authors="Zhao et al.",
    year=2023,
    arxiv="2305.10425",
)
RSO = Paper(
    key="liu2023statistical",
    title="Statistical Rejection Sampling Improves Preference Optimization",
    authors="Liu et al.",
    year=2023,
    arxiv="2309.06657",
)
SELF_REFINEMENT = Paper(
    key="yu2024direct",
    title="Direct Alignment of Language Models via Quality-Aware Self-Refinement",
    authors="Yu et al.",
    year=2024,
    arxiv="2405.21040",
)
PREFERENCE_MATCHING = Paper(
    key="xiao2024algorithmic",
    title="On the Algorithmic Bias of Aligning Large Language Models with RLHF: "
    "Preference Collapse and Matching Regularization",
    authors="Xiao et al.",
    year=2024,
    arxiv="2405.16455",
)
F_DPO = Paper(
    key="wang2023beyond",
    title="Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints",
    authors="Wang et al.",
    year=2023,
    arxiv="2309.16240",
)
ROBUST = Paper(
    key="chowdhury2024provably",
    title="Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    authors="Chowdhury et al.",
    year=2024,
    arxiv="2403.00409",
)
EXO = Paper(
    key="ji2024towards",
    title="Towards Efficient Exact Optimization of Language Model Alignment",
    authors="Ji et al.",
    year=2024,
    arxiv="2402.00856",
)
DISCOPOP = Paper(
    key="lu2024discovering",
    title="Discovering Preference Optimization Algorithms with and for Large Language Models",
    authors="Lu et al.",
    year=2024,
    arxiv="2406.08414",
)
DPO_POSITIVE = Paper(
    key="pal2024smaug",
    title="Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
    authors="Pal et al.",
    year=2024,
    arxiv="2402.13228",
)
NCA = Paper(
    key="chen2024noise",
    title="Noise Contrastive Alignment of Language Models with Explicit Rewards",
    authors="Chen et al.",
    year=2024,
    arxiv="2402.05369",
)
BCO = Paper(
    key="jung2024binary",
    title="Binary Classifier Optimization for Large Language Model Alignment",
    authors="Jung et al.",
    year=2024,
    arxiv="2404.04656",
)
SPPO = Paper(
    key="wu2024self",
    title="Self-Play Preference Optimization for Language Model Alignment",
    authors="Wu et al.",
    year=2024,
    arxiv="2405.00675",
)
APO = Paper(
    key="doosterlinck2024anchored",
    title="Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
    authors="D'Oosterlinck et al.",
    year=2024,
    arxiv="2408.06266",
)
ORPO = Paper(
    key="hong2024orpo",
    title="ORPO: Monolithic Preference Optimization without Reference Model",
    authors="Hong et al.",
    year=2024,
    arxiv="2403.07691",
)
CPO = Paper(
    key="xu2024contrastive",
    title="Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
    authors="Xu et al.",
    year=2024,
    arxiv="2401.08417",
)
RPO = Paper(
    key="pang2024iterative",
    title="Iterative Reasoning Preference Optimization",
    authors="Pang et al.",
    year=2024,
    arxiv="2404.19733",
)
MPO = Paper(
    key="wang2024enhancing",
    title="Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference Optimization",
    authors="Wang et al.",
    year=2024,
    arxiv="2411.10442",
)
SAMPO = Paper(
    key="lu2024eliminating",
    title="Eliminating Biased Length Reliance of Direct Preference Optimization via Down-Sampled KL Divergence",
    authors="Lu et al.",
    year=2024,
    arxiv="2406.10957",
)
ODPO = Paper(
    key="amini2024direct",
    title="Direct Preference Optimization with an Offset",
    authors="Amini et al.",
    year=2024,
    arxiv="2402.10571",
)
KTO = Paper(
    key="ethayarajh2024kto",
    title="KTO: Model Alignment as Prospect Theoretic Optimization",
    authors="Ethayarajh et al.",
    year=2024,
    arxiv="2402.01306",
)
AOT = Paper(
    key="melnyk2024distributional",
    title="Distributional Preference Alignment of LLMs via Optimal Transport",
    authors="Melnyk et al.",
    year=2024,
    arxiv="2406.05882",
)
WPO = Paper(
    key="zhou2024wpo",
    title="WPO: Enhancing RLHF with Weighted Preference Optimization",
    authors="Zhou et al.",
    year=2024,
    arxiv="2406.11827",
)
CPO_SIMPO = Paper(
    key="xu2024joint",
    title="The joint of Contrastive Preference Optimization (CPO) & Simple Preference Optimization (SimPO)",
    authors="Xu",
    year=2024,
    url="https://github.com/fe1ixxu/CPO_SIMPO",
)
ALPHA_PO = Paper(
    key="gupta2025alphapo",
    title="AlphaPO: Reward Shape Matters for LLM Alignment",
    authors="Gupta et al.",
    year=2025,
    arxiv="2501.03884",
)
