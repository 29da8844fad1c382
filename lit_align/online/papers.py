"""The publications that the parts of on-policy training and reward modelling implement."""

from __future__ import annotations

from lit_align.objectives.papers import Paper

PPO = Paper(
    key="schulman2017proximal",
    title="Proximal Policy Optimization Algorithms",
    authors="Schulman et al.",
    year=2017,
    arxiv="1707.06347",
)
ADVANTAGES = Paper(
    key="schulman2015high",
    title="High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    authors="Schulman et al.",
    year=2015,
    arxiv="1506.02438",
)
RLOO = Paper(
    key="ahmadian2024back",
    title="Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    authors="Ahmadian et al.",
    year=2024,
    arxiv="2402.14740",
)
REMAX = Paper(
    key="li2023remax",
    title="ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models",
    authors="Li et al.",
    year=2023,
    arxiv="2310.10505",
)
GROUPS = Paper(
    key="shao2024deepseekmath",
    title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    authors="Shao et al.",
    year=2024,
    arxiv="2402.03300",
)
INSTRUCT = Paper(
    key="ouyang2022training",
    title="Training language models to follow instructions with human feedback",
    authors="Ouyang et al.",
    year=2022,
    arxiv="2203.02155",
)
CENTRING = Paper(
    key="eisenstein2023helping",
    title="Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking",
    authors="Eisenstein et al.",
    year=2023,
    arxiv="2312.09244",
)
