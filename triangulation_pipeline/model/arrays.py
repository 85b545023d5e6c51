"""Arithmetic that NumPy arrays and tensors have by different names: the formulas of ``geometry`` and ``arrivals`` serve
both, the search for hypotheses, of many rows or one, in NumPy, and the model with its gradients in PyTorch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def at_least(values: Any, least: Any) -> Any:
    """The values, or ``least`` where they are smaller."""
    return values.clamp(min=least) if isinstance(values, torch.Tensor) else np.maximum(values, least)


def at_most(values: Any, most: Any) -> Any:
    """The values, or ``most`` where they are greater."""
    return values.clamp(max=most) if isinstance(values, torch.Tensor) else np.minimum(values, most)


def exp(values: Any) -> Any:
    """The exponential."""
    return values.exp() if isinstance(values, torch.Tensor) else np.exp(values)


def log(values: Any) -> Any:
    """The natural logarithm."""
    return values.log() if isinstance(values, torch.Tensor) else np.log(values)


def sqrt(values: Any) -> Any:
    """The square root."""
    return values.sqrt() if isinstance(values, torch.Tensor) else np.sqrt(values)


def tanh(values: Any) -> Any:
    """The hyperbolic tangent."""
    return values.tanh() if isinstance(values, torch.Tensor) else np.tanh(values)


def stack(values: Sequence[Any]) -> Any:
    """Arrays of one shape, along a new first axis."""
    return torch.stack(list(values)) if isinstance(values[0], torch.Tensor) else np.stack(values)


def copysign(values: Any, signs: Any) -> Any:
    """The values with other signs."""
    return values.copysign(signs) if isinstance(values, torch.Tensor) else np.copysign(values, signs)


def least_of(values: Any) -> Any:
    """The least along the first axis."""
    return values.amin(0) if isinstance(values, torch.Tensor) else np.minimum.reduce(values)


def total(values: Any) -> Any:
    """The sum along the first axis, (...): over receivers."""
    return values.sum(0) if isinstance(values, torch.Tensor) else np.add.reduce(values)


def mean(values: Any, weight: Any) -> Any:
    """Weighted mean over receivers, (...); 0 if all weights are."""
    return total(weight * values) / at_least(total(weight), 1e-20)
