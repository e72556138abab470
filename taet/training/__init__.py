"""Training: the loop, the step, and the run folder."""

from taet.training.runs import resume, train
from taet.training.trainer import TrainingResult

__all__ = ["TrainingResult", "resume", "train"]
