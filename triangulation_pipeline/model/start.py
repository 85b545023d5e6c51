"""The first position of the solver: a robust grid search over the service area, refined by Gauss-Newton.

Nothing is learned by gradient here. Shapes: B batch, R receivers, K cells or candidates.
"""

import torch
from torch import Tensor, nn

from triangulation_pipeline.frame import ServiceArea
from triangulation_pipeline.model.geometry import SiteGeometry, gauss_newton_step
from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.locator import FitData
from triangulation_pipeline.model.spec import StartConfig
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES

CHUNK_ROWS = 1024


class RobustStart(nn.Module):
    """Best of several local minima of a robust cost of arrival times, levels and non-detections.

    The level of receiver i is ``power_i = common + gain_i - slope ln d_i + noise``, with constants that ``fit``
    estimates on training rows. Levels decide between two crossings of hyperbolas that arrival times cannot tell apart.
    """

    cells_K2: Tensor
    cell_range_m_KR: Tensor
    gain_db_R: Tensor
    slope_db: Tensor
    level_sigma_db: Tensor
    threshold_db: Tensor
    site_bias_m_R: Tensor

    def __init__(self, geometry: SiteGeometry, area: ServiceArea, config: StartConfig) -> None:
        super().__init__()
        self.config = config
        self.geometry = geometry
        self.area = area
        side = torch.arange(config.cells_per_side, dtype=torch.float32).add(0.5).div(config.cells_per_side)
        east = area.east_min_m + side * (area.east_max_m - area.east_min_m)
        north = area.north_min_m + side * (area.north_max_m - area.north_min_m)
        cells = torch.cartesian_prod(east, north)
        self.register_buffer("cells_K2", cells, persistent=False)
        self.register_buffer("cell_range_m_KR", geometry.ranges_m(cells)[0], persistent=False)
        receivers = len(geometry.site_enu_m_R3)
        self.register_buffer("gain_db_R", torch.zeros(receivers))
        self.register_buffer("slope_db", torch.tensor(0.0))
        self.register_buffer("level_sigma_db", torch.tensor(1.0))
        self.register_buffer("threshold_db", torch.tensor(0.0))
        self.register_buffer("site_bias_m_R", torch.zeros(receivers))

    @torch.no_grad()
    def fit(self, data: FitData) -> None:
        """Estimates the level constants by least squares, and takes the given site biases."""
        inputs = data.inputs
        mask = inputs.present_BR.double()
        receivers = mask.shape[1]
        log_range = self.geometry.ranges_m(data.target_m_B2)[0].double().log()
        # One unknown gain per receiver and the slope; the common level of each row is removed by centring.
        design = torch.cat(
            [torch.eye(receivers, device=mask.device).double().expand(len(mask), -1, -1), -log_range[..., None]], dim=2
        )
        count = mask.sum(1).clamp_min(1)
        design = (design - ((mask[..., None] * design).sum(1) / count[:, None])[:, None]) * mask[..., None]
        level = inputs.power_dbm_BR.double()
        level = (level - ((mask * level).sum(1) / count)[:, None]) * mask
        normal = torch.einsum("bri,brj->ij", design, design) + 1e-6 * torch.eye(receivers + 1, device=mask.device)
        solution = torch.linalg.solve(normal, torch.einsum("bri,br->i", design, level))
        freedom = (mask.sum() - len(mask)).clamp_min(1)
        residual = (level - design @ solution) * mask
        self.gain_db_R.copy_(solution[:receivers] - solution[:receivers].mean())
        self.slope_db.copy_(solution[receivers])
        self.level_sigma_db.copy_((residual.square().sum() / freedom).sqrt().clamp_min(0.5))
        self.threshold_db.copy_(torch.quantile(inputs.snr_db_BR[inputs.present_BR][:100_000], 0.05))
        self.site_bias_m_R.copy_(data.site_bias_m_R)

    @torch.no_grad()
    def forward(self, inputs: LocatorInputs) -> Tensor:
        """Positions (B, 2), metres: the refined fix if there are three arrival times, else the posterior mean of the
        levels over the cells."""
        return torch.cat(
            [self._locate(inputs.take(slice(i, i + CHUNK_ROWS))) for i in range(0, max(len(inputs), 1), CHUNK_ROWS)]
        )

    def _locate(self, inputs: LocatorInputs) -> Tensor:
        timed = inputs.toa_present_BR.to(inputs.toa_m_BR.dtype)
        toa_m = inputs.toa_m_BR - self.site_bias_m_R
        by_level_BK = self._level_cost(inputs, self.cell_range_m_KR.expand(len(inputs), -1, -1))
        mean_B2 = torch.softmax(-by_level_BK, dim=1) @ self.cells_K2

        residual_BKR = (toa_m[:, None] - self.cell_range_m_KR) / self.config.search_scale_m
        squared = torch.zeros_like(residual_BKR)
        for _ in range(3):
            squared = (residual_BKR - _weighted_mean(residual_BKR, timed[:, None] / (1 + squared))).square()
        cost_BK = (timed[:, None] * squared.log1p()).sum(-1) + by_level_BK
        candidates = self.cells_K2[cost_BK.topk(self.config.candidates, dim=1, largest=False).indices]
        refined = self._refined(candidates, toa_m, inputs.sigma_m_BR, timed)
        best = self._cost(refined, toa_m, inputs, timed).argmin(1)
        en_m_B2 = refined.gather(1, best[:, None, None].expand(-1, 1, 2))[:, 0]
        return torch.where((timed.sum(1) >= LEAST_ARRIVAL_TIMES)[:, None], en_m_B2, mean_B2)

    def _refined(self, en_m_BK2: Tensor, toa_m_BR: Tensor, sigma_m_BR: Tensor, timed_BR: Tensor) -> Tensor:
        config, area = self.config, self.area
        low = en_m_BK2.new_tensor([area.east_min_m - config.margin_m, area.north_min_m - config.margin_m])
        high = en_m_BK2.new_tensor([area.east_max_m + config.margin_m, area.north_max_m + config.margin_m])
        for scale_m in config.refinement_scales_m:
            distance, grad_e, grad_n = self.geometry.ranges_m(en_m_BK2)
            variance = (sigma_m_BR.square() + scale_m**2)[:, None]
            residual, weight = robust_residual(toa_m_BR[:, None] - distance, variance, timed_BR[:, None])
            step = gauss_newton_step(residual, weight, grad_e, grad_n, config.damping)
            length = step.norm(dim=-1, keepdim=True)
            step = step * (config.longest_step_m / length.clamp_min(config.longest_step_m))
            en_m_BK2 = torch.minimum(torch.maximum(en_m_BK2 + step, low), high)
        return en_m_BK2

    def _cost(self, en_m_BK2: Tensor, toa_m_BR: Tensor, inputs: LocatorInputs, timed_BR: Tensor) -> Tensor:
        distance, _, _ = self.geometry.ranges_m(en_m_BK2)
        variance = inputs.sigma_m_BR.square()[:, None]
        residual, _ = robust_residual(toa_m_BR[:, None] - distance, variance, timed_BR[:, None])
        by_time = (timed_BR[:, None] * (residual.square() / variance).log1p()).sum(-1)
        return by_time + self._level_cost(inputs, distance)

    def _level_cost(self, inputs: LocatorInputs, range_m_BKR: Tensor) -> Tensor:
        """Minus log-likelihood (B, K) of the levels, up to a constant, with the common level at its best fit; a
        receiver that should have heard the transmission and did not counts against a position."""
        mask = inputs.present_BR.to(range_m_BKR.dtype)[:, None]
        residual = (inputs.power_dbm_BR - self.gain_db_R)[:, None] + self.slope_db * range_m_BKR.log()
        residual = residual - _weighted_mean(residual, mask)
        # The power_dbm of a receiver that detected nothing is its noise floor: minus the residual is the expected SNR.
        excess = (-residual - self.threshold_db).clamp_min(0)
        return (torch.where(mask > 0, residual, excess) / self.level_sigma_db).square().sum(-1) / 2


def robust_residual(residual_BKR: Tensor, variance_BKR: Tensor, timed_BKR: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals less the emission time (a reweighted mean), and Cauchy weights over the variance."""
    prior = timed_BKR / variance_BKR
    weight = prior
    for _ in range(3):
        centred = residual_BKR - _weighted_mean(residual_BKR, weight)
        weight = prior / (1 + centred.square() / variance_BKR)
    return residual_BKR - _weighted_mean(residual_BKR, weight), weight


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    return (weight * values).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp_min(1e-12)
