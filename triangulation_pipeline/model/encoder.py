"""What the architectures share: what each receiver says at a hypothesis as a token, attention between them, pooling.

All features are in units of the row's own information, so that networks of any size and noise look alike. Shapes: M
hypotheses (of any rows), W receivers, D embedding, F features.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from triangulation_pipeline.model.arrays import at_least, at_most, copysign, log, mean, sqrt, stack, tanh
from triangulation_pipeline.model.arrivals import Arrivals
from triangulation_pipeline.model.geometry import Beside, Ellipse, ranges_m
from triangulation_pipeline.model.inputs import LEAST_DELAYED, LocatorInputs
from triangulation_pipeline.model.spec import EncoderConfig
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES

TOKEN_FEATURES = 25
NOISE_FEATURES = 2
MASKED = -1e9  # what is not attended to


@dataclass(frozen=True)
class View:
    """What the receivers of each row say at a hypothesis of its place, without gradient."""

    timed_WM: Tensor  # 0 or 1
    solved_M: Tensor  # bool: enough arrival times for a position
    sigma_m_WM: Tensor
    residual_m_WM: Tensor
    due_m_WM: Tensor
    weight_WM: Tensor
    grad_e_WM: Tensor
    grad_n_WM: Tensor
    leverage_WM: Tensor
    beside: Beside
    features_MWF: Tensor
    noise_MF: Tensor

    @classmethod
    def of(cls, inputs: LocatorInputs, which_M: Tensor) -> "View":
        """That of rows, at the hypothesis of each that ``which_M`` picks.

        It has no gradient, so that on the CPU it is computed by NumPy, whose small steps are shorter.
        """
        device = which_M.device

        def plain(values: Tensor) -> Any:
            return values.numpy() if device.type == "cpu" else values

        row, which = torch.arange(len(inputs), device=device), which_M
        place_m, spread_m = plain(inputs.hypothesis_m_BK2[row, which]), plain(inputs.spread_m_BK3[row, which])
        level = plain(inputs.level_BKW[row, which].T)
        # Receivers first: sums over them are then sums of whole arrays.
        timed, hears = plain(inputs.timed_BW.T.float().contiguous()), plain(inputs.hears_BW.T.float().contiguous())
        sigma_m, toa_m = plain(inputs.sigma_m_BW.T.contiguous()), plain(inputs.toa_m_BW.T)
        surface, altitude_m = plain(inputs.surface_B5.T), plain(inputs.altitude_m_B)
        range_m, grad_e, grad_n = ranges_m(place_m, plain(inputs.site_m_B3W.permute(1, 2, 0)), surface, altitude_m)
        delayed = plain(inputs.delay_probability_B.clamp(LEAST_DELAYED, 1 - LEAST_DELAYED))
        delay_m = plain(inputs.delay_mean_m_B)
        seen = Arrivals.of(toa_m - range_m, sigma_m, timed, delayed, delay_m)
        residual_m, weight = seen.residual_m, seen.weight
        number = timed.sum(0)

        ellipse = Ellipse.of_spread(spread_m[..., 0], spread_m[..., 1], spread_m[..., 2])
        to_east, to_across = sqrt(ellipse.east2), sqrt(ellipse.across2)

        def whitened(east: Any, north: Any, scale_weight: Any) -> tuple[Any, Any]:
            """Gradients in units of the ellipse, less their mean."""
            east, north = east - mean(east, scale_weight), north - mean(north, scale_weight)
            return east / to_east, (north - ellipse.k * east) / to_across

        slope = plain(inputs.level_slope_B)
        root, to_level = sqrt(weight), slope / range_m * hears
        by_east, by_across = (gradient * root for gradient in whitened(grad_e, grad_n, weight))
        by_level = whitened(grad_e * to_level, grad_n * to_level, hears)
        of_time = root / sqrt(at_least(weight.sum(0), 1e-20))
        leverage = at_most(by_east * by_east + by_across * by_across + of_time * of_time, 1.0)
        spare = 1.03 - leverage
        x = residual_m / sigma_m
        deleted = x / spare

        # The typical sigma of the row: its harmonic mean.
        variance_m2 = sigma_m * sigma_m
        usual_m = 1.0 / sqrt(at_least((timed / variance_m2).sum(0) / at_least(number, 1.0), 1e-12))
        noise = (log(delayed / (1.0 - delayed)) / 2, log(usual_m / delay_m) / 2 * (number > 0))
        beside = Beside.of(level, slope, hears, range_m, grad_e, grad_n, plain(inputs.area_m_B))
        log_range = log(range_m)
        bent = [x, x / 3, x / 10, x / 40, deleted / 3, deleted * sqrt(spare) / 3, residual_m / delay_m, level / 2]
        x_1, x_3, x_10, x_40, deleted_3, spared_3, of_delay, level_2, *level_by = tanh(stack([*bent, *by_level]))
        of_number = (log(at_least(number, 0.5)) - 1.9, number >= LEAST_ARRIVAL_TIMES)
        features = [
            *(x_1, x_3, x_10, x_40, _signed_log(x) / 4, deleted_3, _signed_log(deleted) / 4, spared_3, of_delay),
            *(by_east, by_across, of_time, leverage, weight * variance_m2, log(sigma_m / usual_m) * timed),
            *(level_2, *level_by, hears, timed, (log_range - mean(log_range, hears)) * hears),
            # As wide as the others.
            *(values + 0.0 * x for values in (*of_number, *noise)),
        ]
        return cls(
            timed_WM=torch.as_tensor(timed),
            solved_M=torch.as_tensor(number >= LEAST_ARRIVAL_TIMES),
            sigma_m_WM=torch.as_tensor(sigma_m),
            residual_m_WM=torch.as_tensor(residual_m),
            due_m_WM=torch.as_tensor(seen.due_m),
            weight_WM=torch.as_tensor(weight),
            grad_e_WM=torch.as_tensor(grad_e),
            grad_n_WM=torch.as_tensor(grad_n),
            leverage_WM=torch.as_tensor(leverage),
            beside=Beside(*(torch.as_tensor(getattr(beside, field.name)) for field in fields(Beside))),
            features_MWF=torch.as_tensor(stack(features)).permute(2, 1, 0),
            noise_MF=torch.as_tensor(stack(noise)).T,
        )


class ReceiverEncoder(nn.Module):
    """Tokens of the receivers, each aware of the others: a plain layer and one pre-norm attention block."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.embedding
        self.heads = config.heads
        self.embed = nn.Sequential(nn.Linear(TOKEN_FEATURES, width), nn.GELU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, features_MWF: Tensor, hears_MW: Tensor) -> Tensor:
        """Tokens (M, W, D); what does not hear is not attended to."""
        tokens = self.embed(features_MWF)
        batch, receivers, width = tokens.shape
        query, key, value = (
            self.project(self.norm(tokens))
            .view(batch, receivers, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        mask = torch.zeros_like(hears_MW, dtype=tokens.dtype).masked_fill(~hears_MW, MASKED)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(batch, receivers, width))
        return tokens + self.feed(tokens)


def pooled(tokens_MWD: Tensor, hears_MW: Tensor) -> Tensor:
    """Mean and maximum over the receivers that hear, (M, 2 D); zeros if none does."""
    mask = hears_MW[..., None].to(tokens_MWD.dtype)
    mean_MD = (tokens_MWD * mask).sum(1) / mask.sum(1).clamp_min(1)
    maximum = tokens_MWD.masked_fill(~hears_MW[..., None], MASKED).amax(1)
    return torch.cat([mean_MD, torch.where(hears_MW.any(1, keepdim=True), maximum, torch.zeros_like(maximum))], dim=-1)


def _signed_log(x: Any) -> Any:
    return copysign(log(1.0 + abs(x)), x)
