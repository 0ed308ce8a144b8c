"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no scheduler state."""

import math

from quadriga.actors.settings import OptimizerSettings


def lr(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """Return the learning rate of one optimizer step.

    step: from 0; total_steps: optimizer steps of the whole run. With w warm-up steps, step s < w takes
    lr (s + 1) / (w + 1): the first step moves already, and step w is the first at the full rate. From there to the last
    step the rate falls to lr * min_lr_ratio, in a line or along half a cosine (Loshchilov and Hutter 2017, equation 5);
    `constant` stays.
    """
    warmup = settings.warmup_steps
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    match settings.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1.0 - progress
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * progress))
    floor = settings.min_lr_ratio
    return settings.lr * (floor + (1.0 - floor) * share)
