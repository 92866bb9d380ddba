"""The training loop and its parts."""

from resgen.training.interface import Task, TrainerConfig
from resgen.training.parallel import initialise
from resgen.training.stages import Run
from resgen.training.stop import Interrupted
from resgen.training.trainer import Trainer

__all__ = ["Interrupted", "Run", "Task", "Trainer", "TrainerConfig", "initialise"]
