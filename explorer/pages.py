"""The eleven pages: where each one stands, and what it shows. Needs the standard library only."""

import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent


class Page(NamedTuple):
    number: int  # of the stage; 11 is the capstone
    name: str  # its address: /count
    file: str  # what it imports and shows
    idea: str  # in one sentence
    sections: tuple[str, ...]  # the titles of the sections behind it

    @property
    def notebook(self):
        """The page itself, a Python file."""
        return FOLDER / f"page{self.number:02}_{self.name}.py"

    @property
    def title(self):
        """Stage 5: attend"""
        return f"{'The' if self.number == 11 else f'Stage {self.number}:'} {self.name}"

    def behind(self):
        """The file and the numbered titles of its sections: "stage05_attention.py, 3. Soft ..."."""
        source = (ROOT / self.file).read_text(encoding="utf-8")
        titles = dict(re.findall(r"^# %% (\d+)\. (.*)$", source, re.M))
        number = {title: n for n, title in titles.items()}
        return [f"{number[title]}. {title}" for title in self.sections]


PAGES = (
    Page(
        1,
        "count",
        "stage01_markov.py",
        "Counting which letter follows which is already a language model.",
        ("Surprise and perplexity", "A shorter context knows more", "Temperature and its kin"),
    ),
    Page(
        2,
        "differentiate",
        "stage02_autograd.py",
        "A derivative travels backward along edges, and each multiplies it by its slope.",
        (
            "There and back",
            "The derivative, and how to measure it",
            "Part two: one rulebook",
            "Reverse mode: remember, then sweep back",
        ),
    ),
    Page(
        3,
        "embed",
        "stage03_nlm.py",
        "A network that predicts the next letter finds by itself which letters are alike.",
        ("Three layers", "Training, and overfitting", "Looking inside"),
    ),
    Page(
        4,
        "descend",
        "stage04_optim.py",
        "All optimizers go downhill; they differ in what they make of a valley.",
        ("How fast? A proven rate", "Momentum, and Nesterov's look ahead", "Adam, and AdamW"),
    ),
    Page(
        5,
        "attend",
        "stage05_attention.py",
        "Each token asks all tokens up to itself, and takes an average of their answers.",
        ("Attention and its backward", "Two layers learn to recall", "What single heads do"),
    ),
    Page(
        6,
        "stack",
        "stage06_transformer.py",
        "A transformer is one stream of numbers a token, to which every block adds a little.",
        ("The block and its depth", "Counting before building", "Scaling laws"),
    ),
    Page(
        7,
        "tokenize",
        "stage07_bpe.py",
        "What a model reads are pieces of words, and each tokenizer cuts them its own way.",
        (
            "The idea on one page",
            "Byte-pair encoding",
            "WordPiece, and the longest match",
            "Unigram: a probability for every piece",
            "The five steps of every tokenizer",
        ),
    ),
    Page(
        8,
        "diagnose",
        "stage08_dynamics.py",
        "A broken training run shows its cause, if one knows where to look.",
        ("The loss curve", "Diagnose", "The clinic"),
    ),
    Page(
        9,
        "adapt",
        "stage09_lora.py",
        "What fine-tuning is good for takes few directions, so a small adapter can hold it.",
        ("LoRA: learn a low-rank update", "Which method, where, which rank and alpha"),
    ),
    Page(
        10,
        "align",
        "stage10_dpo.py",
        "Reward is paid for with distance from the model's start; each price has its best policy.",
        (
            "The optimal policy",
            "PPO: several steps on one batch, each kept small",
            "DPO: the policy is its own reward model",
        ),
    ),
    Page(
        11,
        "capstone",
        "capstone_gpt.py",
        "All together: open a run of your own, and see what the GPT expects and where it looks.",
        ("Attention", "The draw", "Training runs"),
    ),
)
