"""What the architectures share: what each receiver says at a hypothesis as a token, attention between them, pooling.

All features are in units of the row's own information, so that networks of any size and noise look alike. Shapes: M
hypotheses (of any rows), W receivers, D embedding, F features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triangulation_pipeline.model.arrays import mean
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
    hears_WM: Tensor  # 0 or 1
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
    @torch.no_grad()
    def of(cls, inputs: LocatorInputs, which_M: Tensor) -> "View":
        """That of rows, at the hypothesis of each that ``which_M`` picks."""
        row = torch.arange(len(inputs), device=which_M.device)
        place_m, spread_m = inputs.hypothesis_m_BK2[row, which_M], inputs.spread_m_BK3[row, which_M]
        # Receivers first: sums over them are then sums of whole tensors.
        timed, hears = inputs.timed_BW.T.float().contiguous(), inputs.hears_BW.T.float().contiguous()
        sigma_m = inputs.sigma_m_BW.T.contiguous()
        site_m = inputs.site_m_B3W.permute(1, 2, 0).contiguous()
        range_m, grad_e, grad_n = ranges_m(place_m, site_m, inputs.surface_B5.unbind(-1), inputs.altitude_m_B)
        delayed = inputs.delay_probability_B.clamp(LEAST_DELAYED, 1 - LEAST_DELAYED)
        delay_m = inputs.delay_mean_m_B
        seen = Arrivals.of(inputs.toa_m_BW.T - range_m, sigma_m, timed, delayed, delay_m)
        residual_m, weight = seen.residual_m, seen.weight
        number = timed.sum(0)

        ellipse = Ellipse.of_spread(*spread_m.unbind(-1))
        to_east, to_across = ellipse.east2.rsqrt(), ellipse.across2.rsqrt()

        def whitened(scale: Tensor, scale_weight: Tensor) -> tuple[Tensor, Tensor]:
            """Gradients in units of the ellipse, less their mean."""
            east, north = grad_e * scale, grad_n * scale
            east, north = east - mean(east, scale_weight), north - mean(north, scale_weight)
            return east * to_east, (north - ellipse.k * east) * to_across

        slope = inputs.level_slope_B
        root = weight.sqrt()
        by_east, by_across = (v * root for v in whitened(torch.ones_like(root), weight))
        by_level = whitened(slope / range_m * hears, hears)
        of_time = root * weight.sum(0).clamp_min(1e-20).rsqrt()
        leverage = (by_east * by_east + by_across * by_across + of_time * of_time).clamp_max(1.0)
        spare = 1.03 - leverage
        x = residual_m / sigma_m
        deleted = x / spare

        # The typical sigma of the row: its harmonic mean.
        variance_m2 = sigma_m * sigma_m
        usual_m = ((timed / variance_m2).sum(0) / number.clamp_min(1)).clamp_min(1e-12).rsqrt()
        log_sigma = (sigma_m / usual_m).log() * timed
        noise = torch.stack([torch.logit(delayed) / 2, (usual_m / delay_m).log() / 2 * (number > 0)])
        level = inputs.level_BKW[row, which_M].T
        beside = Beside.of(level, slope, hears, range_m, grad_e, grad_n, inputs.area_m_B)
        log_range = range_m.log()
        log_range = (log_range - mean(log_range, hears)) * hears
        features = [
            torch.tanh(x),
            torch.tanh(x / 3),
            torch.tanh(x / 10),
            torch.tanh(x / 40),
            _signed_log(x) / 4,
            torch.tanh(deleted / 3),
            _signed_log(deleted) / 4,
            torch.tanh(deleted * spare.sqrt() / 3),
            torch.tanh(residual_m / delay_m),
            by_east,
            by_across,
            of_time,
            leverage,
            weight * variance_m2,
            log_sigma,
            torch.tanh(level / 2),
            *(torch.tanh(v) for v in by_level),
            hears,
            timed,
            log_range,
            (number.clamp_min(0.5).log() - 1.9).expand_as(x),
            (number >= LEAST_ARRIVAL_TIMES).float().expand_as(x),
            noise[0].expand_as(x),
            noise[1].expand_as(x),
        ]
        return cls(
            timed_WM=timed,
            hears_WM=hears,
            solved_M=number >= LEAST_ARRIVAL_TIMES,
            sigma_m_WM=sigma_m,
            residual_m_WM=residual_m,
            due_m_WM=seen.due_m,
            weight_WM=weight,
            grad_e_WM=grad_e,
            grad_n_WM=grad_n,
            leverage_WM=leverage,
            beside=beside,
            features_MWF=torch.stack(features).permute(2, 1, 0),
            noise_MF=noise.T,
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


def _signed_log(x: Tensor) -> Tensor:
    return x.sign() * x.abs().log1p()
