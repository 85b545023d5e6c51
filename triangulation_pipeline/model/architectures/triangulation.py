"""A least-squares solver inside the neural network, in the order the data flows: start, rounds, covariance.

Shapes: B batch, R receivers.
"""

import torch
from torch import Tensor, nn

from triangulation_pipeline.model.architectures.regression import Regression
from triangulation_pipeline.model.encoder import ReceiverAttention, ReceiverEncoder, pooled
from triangulation_pipeline.model.geometry import SiteGeometry, gauss_newton_step, information
from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.locator import FitData, Located, Locator, cholesky, zeroed
from triangulation_pipeline.model.spec import LocatorSpec, TriangulationConfig
from triangulation_pipeline.model.start import RobustStart, robust_residual
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES


class Triangulation(Locator):
    """Robust start, then learned solver rounds; rows with fewer than three arrival times are regressed around the
    posterior mean of their levels."""

    def __init__(self, spec: LocatorSpec, config: TriangulationConfig) -> None:
        super().__init__()
        receivers = len(spec.network.sites)
        self.geometry = SiteGeometry(spec.network, spec.tx_altitude_m)
        self.start = RobustStart(self.geometry, spec.network.service_area(spec.area_margin_m), config.start)
        self.rounds = nn.ModuleList(SolverRound(receivers, config) for _ in range(config.rounds))
        self.uncertainty = nn.Sequential(
            nn.Linear(2 * config.embedding, config.embedding), nn.GELU(), zeroed(nn.Linear(config.embedding, 3))
        )
        # Its own covariance scale stays 1; checkpoints hold it.
        self.regression = Regression(spec, config)

    def fit(self, data: FitData) -> None:
        """Level constants, site biases and input scaling."""
        self.start.fit(data)
        for module in self.modules():
            if isinstance(module, ReceiverEncoder):
                module.fit(data.inputs)

    def initial_fix(self, inputs: LocatorInputs) -> Tensor:
        """The best of several local minima of a robust cost; of the levels alone if there are too few arrival times."""
        fix: Tensor = self.start(inputs)
        return fix

    def forward(self, inputs: LocatorInputs, initial_m_B2: Tensor) -> Located:
        """Positions and covariances, from the initial fix."""
        solved = inputs.toa_present_BR.sum(1) >= LEAST_ARRIVAL_TIMES
        if solved.all():
            return self._solve(inputs, initial_m_B2)
        regressed = self.regression(inputs.take(~solved), initial_m_B2[~solved])
        regressed_tril = regressed.scale_tril_m_B22 * self.covariance_scale.sqrt()
        if not solved.any():
            return Located(regressed.rounds_m_B2, regressed_tril, solved)
        fix = self._solve(inputs.take(solved), initial_m_B2[solved])
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


class SolverRound(nn.Module):
    """One round: residuals at the current position -> tokens -> attention -> weights and delays -> Gauss-Newton."""

    def __init__(self, receivers: int, config: TriangulationConfig) -> None:
        super().__init__()
        self.config = config
        features = len(config.residual_scales_m) + len(config.residual_scales_sigma) + 3
        self.encoder = ReceiverEncoder(receivers, features, config)
        self.attention = ReceiverAttention(config)
        self.read = zeroed(nn.Linear(config.embedding, 2))

    def forward(
        self, geometry: SiteGeometry, inputs: LocatorInputs, toa_m_BR: Tensor, en_m_B2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The new position, the information-based Cholesky factor (metres) at the old one, without gradient, and the
        tokens."""
        config = self.config
        en_m_B2 = en_m_B2.detach()
        timed = inputs.toa_present_BR.to(toa_m_BR.dtype)
        variance = inputs.sigma_m_BR.square()
        distance, grad_e, grad_n = geometry.ranges_m(en_m_B2)
        residual, robust_weight = robust_residual(toa_m_BR - distance, variance, timed)
        # Zero without an arrival time, and so are their tanh.
        known = residual * timed
        normalised = known / inputs.sigma_m_BR
        features = [torch.tanh(known / scale) for scale in config.residual_scales_m]
        features += [torch.tanh(normalised / scale) for scale in config.residual_scales_sigma]
        features += [grad_e, grad_n, (distance / config.range_scale_m).log()]
        tokens = self.attention(self.encoder(inputs, features), inputs.toa_present_BR)
        preference, delay = self.read(tokens).unbind(-1)
        # A softmax: a factor common to all weights would not move the position, but it would drift, and the covariance
        # with it.
        share = preference.masked_fill(~inputs.toa_present_BR, -1e9).softmax(-1)
        weight = robust_weight * share * timed.sum(-1, keepdim=True)
        step = gauss_newton_step(residual - delay * inputs.sigma_m_BR, weight, grad_e, grad_n, config.damping)
        length = step.norm(dim=-1, keepdim=True)
        step = step * (config.longest_step_m / length.clamp_min(config.longest_step_m))
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


def _merged(solved_B: Tensor, solved: Tensor, others: Tensor) -> Tensor:
    whole = solved.new_empty((len(solved_B), *solved.shape[1:]))
    whole[solved_B], whole[~solved_B] = solved, others
    return whole


LOCATOR = Triangulation
