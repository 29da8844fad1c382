"""The publications that the parts of on-policy training and reward modelling implement."""

from __future__ import annotations

from lit_align.objectives.papers import Paper

PPO = Paper("Schulman et al.", "Proximal Policy Optimization Algorithms", "1707.06347")
ADVANTAGES = Paper(
    "Schulman et al.", "High-Dimensional Continuous Control Using Generalized Advantage Estimation", "1506.02438"
)
RLOO = Paper(
    "Ahmadian et al.",
    "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    "2402.14740",
)
REMAX = Paper(
    "Li et al.",
    "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models",
    "2310.10505",
)
GROUPS = Paper(
    "Shao et al.", "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", "2402.03300"
)
INSTRUCT = Paper("Ouyang et al.", "Training language models to follow instructions with human feedback", "2203.02155")
CENTRING = Paper(
    "Eisenstein et al.",
    "Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking",
    "2312.09244",
)
