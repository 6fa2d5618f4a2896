"""What a model is asked while it trains, and when: the keys `evaluation.*`. The loss on the
held-out sets has its own clock, `evaluate_every`."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path


@dataclass
class EvaluationConfig:
    """The kinds of questions, each with a clock of its own. What is on is asked at the end too."""

    samples_every: int = 1000
    """Steps between samples of text; 0: none."""
    positions_every: int = 0
    """Steps between measures of the loss by position in long contexts; 0: none."""
    passkey_every: int = 0
    """Steps between searches for a number hidden in a long text; 0: none."""
    tasks_every: int = 0
    """Steps between runs of `evaluation.tasks`; 0: none."""
    prompts: list[str] = field(default_factory=lambda: ["", "def ", "import "])
    """Texts that samples go on from; an empty one begins a document."""
    sample_tokens: int = 100
    """Tokens of a sample, at most: it ends with the document."""
    temperature: float = 0.8
    """Of the samples; 0 takes the likeliest token each time."""
    top_p: float = 0.95
    """Samples are drawn from the likeliest tokens that have this share of the probability."""
    lengths: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    """Lengths of the long contexts, in multiples of sequence_length; for positions and passkey."""
    rows: int = 8
    """Rows of the longest length whose loss is measured, over all ranks."""
    passkey_depths: int = 5
    """Places where the number is hidden, evenly from the text's beginning to its end."""
    passkey_trials: int = 4
    """Numbers hidden at each place of each length."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of lm-eval, by their names."""
    tasks_path: str = ""
    """Folder with the YAML of tasks of one's own; empty: lm-eval's alone."""
    tasks_limit: int = 0
    """Documents of each task, the first ones; 0: all."""

    def every(self, kind: str) -> int:
        """Steps between two times that `kind` is asked; 0: never."""
        return getattr(self, f"{kind}_every")

    def check(self) -> None:
        """Raises ValueError where this machine lacks what the tasks need."""
        if not self.tasks_every:
            return
        if find_spec("lm_eval") is None:
            raise ValueError(
                f"evaluation.tasks={self.tasks} are lm-eval's, which is not installed: "
                "pip install 'retnet[evaluation]', or leave evaluation.tasks out"
            )
        if self.tasks_path and not Path(self.tasks_path).is_dir():
            raise ValueError(f"evaluation.tasks_path={self.tasks_path} is no folder here")

    def __post_init__(self) -> None:
        clocks = ("samples_every", "positions_every", "passkey_every", "tasks_every")
        for key in (*clocks, "temperature", "tasks_limit"):
            if getattr(self, key) < 0:
                raise ValueError(f"evaluation.{key}={getattr(self, key)}: needed at least 0")
        for key in ("sample_tokens", "rows", "passkey_depths", "passkey_trials"):
            if getattr(self, key) < 1:
                raise ValueError(f"evaluation.{key}={getattr(self, key)}: needed at least 1")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"evaluation.top_p={self.top_p}: needed above 0 and up to 1")
        if not self.lengths or self.lengths != sorted(set(self.lengths)) or self.lengths[0] < 1:
            raise ValueError(
                f"evaluation.lengths={self.lengths}: needed multiples of sequence_length, each "
                "above the one before, as [1,2,4,8]"
            )
        if self.samples_every and not self.prompts:
            raise ValueError(
                "evaluation.prompts=[] and evaluation.samples_every="
                f"{self.samples_every}: name a prompt, as 'evaluation.prompts=[\"\"]', or set "
                "evaluation.samples_every=0"
            )
        if self.tasks_every and not self.tasks:
            raise ValueError(
                f"evaluation.tasks_every={self.tasks_every} and evaluation.tasks=[]: name the "
                "tasks, as evaluation.tasks=[lambada_openai], or set evaluation.tasks_every=0"
            )
        if self.tasks and not self.tasks_every:
            raise ValueError(
                f"evaluation.tasks={self.tasks} and evaluation.tasks_every=0: say how often they "
                "are asked, as evaluation.tasks_every=1000, or set evaluation.tasks=[]"
            )
