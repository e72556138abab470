"""Training: the loop, the step, and the run folder."""

from taet.training.result import TrainingResult
from taet.training.runs import resume, train

__all__ = ["TrainingResult", "resume", "train"]
