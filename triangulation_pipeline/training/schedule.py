"""The learning rate of each step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from triangulation_pipeline.training.config import Scheduler, TrainingConfig

# The cosine ends at this share of the learning rate.
COSINE_END = 0.01


def learning_rate_schedule(optimizer: Optimizer, config: TrainingConfig, steps_per_epoch: int) -> LRScheduler:
    """Sets the learning rate of the first step, and of the next one at each ``step()``: it rises during the warm-up
    and falls after it, until the last step of the last epoch."""
    warmup, total = round(config.warmup_epochs * steps_per_epoch), config.epochs * steps_per_epoch
    if config.lr_scheduler is Scheduler.one_cycle:
        return OneCycleLR(
            optimizer,
            config.learning_rate,
            total_steps=total + 1,
            pct_start=max(warmup, 1) / total,
            cycle_momentum=False,
        )

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        fall = (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        return COSINE_END + (1 - COSINE_END) * fall

    return LambdaLR(optimizer, factor)
