"""The locators, top to bottom in the order the data flows: encoder, attention, heads.

Shapes: B batch, R receivers, D embedding, F features. Positions are (east, north) of the network's frame, metres;
covariances come as lower Cholesky factors in metres.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triangulation_pipeline.model.geometry import SiteGeometry, gauss_newton_step, information
from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.spec import Architecture, LocatorSpec
from triangulation_pipeline.model.start import RobustStart, robust_residual
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES

EMBEDDING = 32
HEADS = 2
ROUNDS = 2
DAMPING = 1e-3
LONGEST_STEP_M = 2000.0
RESIDUAL_SCALES_M = (50.0, 300.0, 2000.0, 20_000.0)
RESIDUAL_SCALES_SIGMA = (1.0, 3.0, 10.0)
RANGE_SCALE_M = 30e3


@dataclass(frozen=True)
class Located:
    """Positions after each round (the last is the answer), the Cholesky factor of its covariance, and which rows were
    solved by arrival times (the others were regressed)."""

    rounds_m_B2: tuple[Tensor, ...]
    scale_tril_m_B22: Tensor
    solved_B: Tensor

    @property
    def en_m_B2(self) -> Tensor:
        """The answer."""
        return self.rounds_m_B2[-1]


class ReceiverEncoder(nn.Module):
    """What each receiver measured, and which site it is, as a token; scaled by constants fitted on training rows."""

    level_mean: Tensor
    level_std: Tensor

    def __init__(self, receivers: int, features: int, dropout_rate: float) -> None:
        super().__init__()
        self.site_RD = nn.Parameter(torch.randn(receivers, EMBEDDING) * 0.1)
        self.embed = nn.Linear(features + 5, EMBEDDING)
        self.mlp = nn.Sequential(nn.GELU(), nn.Dropout(dropout_rate), nn.Linear(EMBEDDING, EMBEDDING))
        self.register_buffer("level_mean", torch.zeros(2))
        self.register_buffer("level_std", torch.ones(2))

    @torch.no_grad()
    def fit(self, inputs: LocatorInputs) -> None:
        """Scaling of SNR and power, from the rows' detecting receivers."""
        levels = torch.stack([inputs.snr_db_BR, inputs.power_dbm_BR], -1)[inputs.present_BR]
        self.level_mean.copy_(levels.mean(0))
        self.level_std.copy_(levels.std(0).clamp_min(1e-3))

    def forward(self, inputs: LocatorInputs, features: Sequence[Tensor]) -> Tensor:
        """Tokens (B, R, D) from the measurements and further features, each (B, R)."""
        timed = inputs.toa_present_BR.to(inputs.sigma_m_BR.dtype)
        measured_FBR = torch.stack(
            [
                (inputs.snr_db_BR - self.level_mean[0]) / self.level_std[0],
                (inputs.power_dbm_BR - self.level_mean[1]) / self.level_std[1],
                inputs.present_BR.to(timed.dtype),
                timed,
                (inputs.sigma_m_BR.log() - 3) * timed,
                *features,
            ]
        )
        # Stacked along the first axis, where each feature is one plain copy: many times faster than along the last.
        return self.mlp(self.embed(measured_FBR.permute(1, 2, 0)) + self.site_RD)


class ReceiverAttention(nn.Module):
    """One pre-norm transformer block over the receivers; masked receivers are not attended to."""

    def __init__(self, dropout_rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(EMBEDDING)
        self.project = nn.Linear(EMBEDDING, 3 * EMBEDDING)
        self.out = nn.Linear(EMBEDDING, EMBEDDING)
        self.feed = nn.Sequential(
            nn.LayerNorm(EMBEDDING),
            nn.Linear(EMBEDDING, 2 * EMBEDDING),
            nn.GELU(),
            nn.Dropout(dropout_rate),
            nn.Linear(2 * EMBEDDING, EMBEDDING),
        )

    def forward(self, tokens_BRD: Tensor, key_BR: Tensor) -> Tensor:
        """Tokens (B, R, D), with keys where ``key_BR`` is true: at least one a row."""
        batch, receivers, _ = tokens_BRD.shape
        query, key, value = (
            self.project(self.norm(tokens_BRD))
            .view(batch, receivers, 3, HEADS, EMBEDDING // HEADS)
            .permute(2, 0, 3, 1, 4)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=key_BR[:, None, None, :])
        mixed = mixed.transpose(1, 2).reshape(batch, receivers, EMBEDDING)
        tokens_BRD = tokens_BRD + self.out(mixed)
        return tokens_BRD + self.feed(tokens_BRD)


def pooled(tokens_BRD: Tensor, key_BR: Tensor) -> Tensor:
    """Mean and maximum over the receivers in ``key_BR``, (B, 2 D); zeros where there is none."""
    mask = key_BR[..., None].to(tokens_BRD.dtype)
    mean = (tokens_BRD * mask).sum(1) / mask.sum(1).clamp_min(1)
    most = tokens_BRD.masked_fill(~key_BR[..., None], -1e9).amax(1)
    return torch.cat([mean, torch.where(key_BR.any(1, keepdim=True), most, torch.zeros_like(most))], dim=-1)


def cholesky(raw_B3: Tensor) -> Tensor:
    """Lower 2x2 factors from (log diagonal, log diagonal, off-diagonal), (B, 2, 2)."""
    first, second = raw_B3[:, 0].clamp(-8, 8).exp(), raw_B3[:, 1].clamp(-8, 8).exp()
    return torch.stack([first, torch.zeros_like(first), raw_B3[:, 2], second], dim=-1).view(-1, 2, 2)


class Regression(nn.Module):
    """Encoder, attention, plain head: position and covariance straight from the pooled embedding, around a first guess
    and relative to the service area's size."""

    covariance_scale: Tensor
    middle_m: Tensor

    def __init__(self, spec: LocatorSpec) -> None:
        super().__init__()
        area = spec.network.service_area(spec.area_margin_m)
        self.size_m = (area.east_max_m - area.east_min_m + area.north_max_m - area.north_min_m) / 4
        middle = torch.tensor([area.east_min_m + area.east_max_m, area.north_min_m + area.north_max_m]) / 2
        self.register_buffer("middle_m", middle, persistent=False)
        self.encoder = ReceiverEncoder(len(spec.network.sites), 2, spec.dropout_rate)
        self.attention = ReceiverAttention(spec.dropout_rate)
        self.head = nn.Sequential(
            nn.Linear(2 * EMBEDDING, 2 * EMBEDDING), nn.GELU(), zeroed(nn.Linear(2 * EMBEDDING, 5))
        )
        self.register_buffer("covariance_scale", torch.tensor(1.0))

    def fit(self, inputs: LocatorInputs, target_en_m_B2: Tensor, site_bias_m_R: Tensor) -> None:
        """Input scaling from training rows."""
        self.encoder.fit(inputs)

    def start(self, inputs: LocatorInputs) -> Tensor:
        """The first guess: the middle of the service area, (B, 2)."""
        return self.middle_m.expand(len(inputs), 2)

    def forward(self, inputs: LocatorInputs, start_m_B2: Tensor) -> Located:
        """Positions around the first guess."""
        toa = inputs.toa_m_BR / RANGE_SCALE_M
        tokens = self.attention(self.encoder(inputs, [toa, torch.tanh(toa * 10)]), inputs.present_BR)
        raw = self.head(pooled(tokens, inputs.present_BR))
        return Located(
            rounds_m_B2=(start_m_B2 + raw[:, :2] * self.size_m,),
            scale_tril_m_B22=cholesky(raw[:, 2:]) * self.size_m * self.covariance_scale.sqrt(),
            solved_B=torch.zeros(len(inputs), dtype=torch.bool, device=raw.device),
        )


class SolverRound(nn.Module):
    """One round: residuals at the current position -> tokens -> attention -> weights and delays -> Gauss-Newton."""

    def __init__(self, receivers: int, dropout_rate: float) -> None:
        super().__init__()
        features = len(RESIDUAL_SCALES_M) + len(RESIDUAL_SCALES_SIGMA) + 3
        self.encoder = ReceiverEncoder(receivers, features, dropout_rate)
        self.attention = ReceiverAttention(dropout_rate)
        self.read = zeroed(nn.Linear(EMBEDDING, 2))

    def forward(
        self, geometry: SiteGeometry, inputs: LocatorInputs, toa_m_BR: Tensor, en_m_B2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The new position, the information-based Cholesky factor (metres) at the old one, without gradient, and the
        tokens."""
        en_m_B2 = en_m_B2.detach()
        timed = inputs.toa_present_BR.to(toa_m_BR.dtype)
        variance = inputs.sigma_m_BR.square()
        distance, grad_e, grad_n = geometry.ranges_m(en_m_B2)
        residual, robust_weight = robust_residual(toa_m_BR - distance, variance, timed)
        # Zero without an arrival time, and so are their tanh.
        known = residual * timed
        normalised = known / inputs.sigma_m_BR
        features = [torch.tanh(known / scale) for scale in RESIDUAL_SCALES_M]
        features += [torch.tanh(normalised / scale) for scale in RESIDUAL_SCALES_SIGMA]
        features += [grad_e, grad_n, (distance / RANGE_SCALE_M).log()]
        tokens = self.attention(self.encoder(inputs, features), inputs.toa_present_BR)
        preference, delay = self.read(tokens).unbind(-1)
        # A softmax, for a common factor would not move the position but would drift and take the covariance with it.
        share = preference.masked_fill(~inputs.toa_present_BR, -1e9).softmax(-1)
        weight = robust_weight * share * timed.sum(-1, keepdim=True)
        step = gauss_newton_step(residual - delay * inputs.sigma_m_BR, weight, grad_e, grad_n, DAMPING)
        length = step.norm(dim=-1, keepdim=True)
        step = step * (LONGEST_STEP_M / length.clamp_min(LONGEST_STEP_M))
        return en_m_B2 + step, information_cholesky(weight.detach(), grad_e, grad_n), tokens


def information_cholesky(weight_BR: Tensor, grad_e_BR: Tensor, grad_n_BR: Tensor) -> Tensor:
    """Cholesky factor (B, 2, 2), metres, of the inverse position information, kept within 1 m to 100 km."""
    ee, nn_, en = information(weight_BR, grad_e_BR, grad_n_BR)
    floor = 1e-10
    ee, nn_ = ee + floor, nn_ + floor
    determinant = (ee * nn_ - en * en).clamp_min(floor**2)
    variance_e, variance_n, covariance = nn_ / determinant, ee / determinant, -en / determinant
    first = variance_e.clamp_min(1.0).sqrt()
    second = (variance_n - (covariance / first).square()).clamp_min(1.0).sqrt()
    return torch.stack([first, torch.zeros_like(first), covariance / first, second], dim=-1).view(-1, 2, 2)


class Triangulation(nn.Module):
    """Robust start, then learned solver rounds; rows with fewer than three arrival times are regressed around the
    posterior mean of their levels."""

    covariance_scale: Tensor

    def __init__(self, spec: LocatorSpec) -> None:
        super().__init__()
        receivers = len(spec.network.sites)
        self.geometry = SiteGeometry(spec.network, spec.tx_height_m)
        self.start = RobustStart(self.geometry, spec.network.service_area(spec.area_margin_m))
        self.rounds = nn.ModuleList(SolverRound(receivers, spec.dropout_rate) for _ in range(ROUNDS))
        self.uncertainty = nn.Sequential(
            nn.Linear(2 * EMBEDDING, EMBEDDING), nn.GELU(), zeroed(nn.Linear(EMBEDDING, 3))
        )
        self.regression = Regression(spec)
        self.register_buffer("covariance_scale", torch.tensor(1.0))

    def fit(self, inputs: LocatorInputs, target_en_m_B2: Tensor, site_bias_m_R: Tensor) -> None:
        """Level constants, site biases and input scaling from training rows."""
        self.start.fit(inputs, target_en_m_B2, site_bias_m_R)
        for module in self.modules():
            if isinstance(module, ReceiverEncoder):
                module.fit(inputs)

    def forward(self, inputs: LocatorInputs, start_m_B2: Tensor) -> Located:
        """Positions and covariances from the start that ``start`` gives."""
        solved = inputs.toa_present_BR.sum(1) >= LEAST_ARRIVAL_TIMES
        if solved.all():
            return self._solve(inputs, start_m_B2)
        regressed = self.regression(inputs.take(~solved), start_m_B2[~solved])
        regressed_tril = regressed.scale_tril_m_B22 * self.covariance_scale.sqrt()
        if not solved.any():
            return Located(regressed.rounds_m_B2, regressed_tril, solved)
        fix = self._solve(inputs.take(solved), start_m_B2[solved])
        return Located(
            tuple(_merged(solved, position, regressed.en_m_B2) for position in fix.rounds_m_B2),
            _merged(solved, fix.scale_tril_m_B22, regressed_tril),
            solved,
        )

    def _solve(self, inputs: LocatorInputs, position_m_B2: Tensor) -> Located:
        toa_m_BR = inputs.toa_m_BR - self.start.site_bias_m_R
        positions = []
        for solver_round in self.rounds:
            position_m_B2, tril_m_B22, tokens = solver_round(self.geometry, inputs, toa_m_BR, position_m_B2)
            positions.append(position_m_B2)
        factor = cholesky(self.uncertainty(pooled(tokens, inputs.toa_present_BR)))
        return Located(
            tuple(positions),
            tril_m_B22 @ factor * self.covariance_scale.sqrt(),
            torch.ones(len(inputs), dtype=torch.bool, device=position_m_B2.device),
        )


Locator = Triangulation | Regression


def build_locator(spec: LocatorSpec) -> Locator:
    """A locator with fresh weights, on the CPU."""
    return Triangulation(spec) if spec.architecture is Architecture.triangulation else Regression(spec)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with zero weights and biases: the head starts at its prior."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _merged(solved_B: Tensor, solved: Tensor, others: Tensor) -> Tensor:
    whole = solved.new_empty((len(solved_B), *solved.shape[1:]))
    whole[solved_B], whole[~solved_B] = solved, others
    return whole
