"""The first position of the solver: a robust grid search over the service area, polished by Gauss-Newton.

Nothing is learned by gradient here. Shapes: B batch, R receivers, K cells or candidates.
"""

import torch
from torch import Tensor, nn

from triangulation_pipeline.frame import ServiceArea
from triangulation_pipeline.model.geometry import SiteGeometry, gauss_newton_step
from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES

CELLS_A_SIDE = 16
CANDIDATES = 6
# Cauchy scales, metres, added in quadrature to each receiver's sigma: from a cell's size down to the noise.
POLISHING_SCALES_M = (1000.0, 300.0, 100.0, 30.0, 0.0, 0.0)
SEARCH_SCALE_M = 3000.0
LONGEST_STEP_M = 20e3
DAMPING = 1e-3
CHUNK_ROWS = 1024
MARGIN_M = 10e3


class RobustStart(nn.Module):
    """Best of several local minima of a robust cost of arrival times, levels and non-detections.

    The level part is ``power_i = common + gain_i - slope ln d_i + noise``, its constants fitted on training rows by
    ``fit``; it decides between the two crossings of hyperbolas that arrival times alone cannot tell apart.
    """

    cells_K2: Tensor
    cell_range_m_KR: Tensor
    gain_db_R: Tensor
    slope_db: Tensor
    level_sigma_db: Tensor
    threshold_db: Tensor
    site_bias_m_R: Tensor

    def __init__(self, geometry: SiteGeometry, area: ServiceArea) -> None:
        super().__init__()
        self.geometry = geometry
        self.area = area
        side = torch.arange(CELLS_A_SIDE, dtype=torch.float32).add(0.5).div(CELLS_A_SIDE)
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
    def fit(self, inputs: LocatorInputs, target_en_m_B2: Tensor, site_bias_m_R: Tensor) -> None:
        """Least squares of the level constants on rows with known position, and the given site biases."""
        mask = inputs.present_BR.double()
        receivers = mask.shape[1]
        log_range = self.geometry.ranges_m(target_en_m_B2)[0].double().log()
        # One unknown gain a receiver and the slope; the common level of each row is removed by centring.
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
        self.site_bias_m_R.copy_(site_bias_m_R)

    @torch.no_grad()
    def forward(self, inputs: LocatorInputs) -> Tensor:
        """Positions (B, 2), metres: the polished fix where there are three arrival times, else the posterior mean of
        the levels over the cells."""
        return torch.cat(
            [self._locate(inputs.take(slice(i, i + CHUNK_ROWS))) for i in range(0, max(len(inputs), 1), CHUNK_ROWS)]
        )

    def _locate(self, inputs: LocatorInputs) -> Tensor:
        timed = inputs.toa_present_BR.to(inputs.toa_m_BR.dtype)
        toa_m = inputs.toa_m_BR - self.site_bias_m_R
        by_level_BK = self._level_cost(inputs, self.cell_range_m_KR.expand(len(inputs), -1, -1))
        mean_B2 = torch.softmax(-by_level_BK, dim=1) @ self.cells_K2

        residual_BKR = (toa_m[:, None] - self.cell_range_m_KR) / SEARCH_SCALE_M
        off = torch.zeros_like(residual_BKR)
        for _ in range(3):
            off = (residual_BKR - _weighted_mean(residual_BKR, timed[:, None] / (1 + off))).square()
        cost_BK = (timed[:, None] * off.log1p()).sum(-1) + by_level_BK
        candidates = self.cells_K2[cost_BK.topk(CANDIDATES, dim=1, largest=False).indices]
        polished = self._polish(candidates, toa_m, inputs.sigma_m_BR, timed)
        en_m_B2 = polished.gather(
            1, self._cost(polished, toa_m, inputs, timed).argmin(1)[:, None, None].expand(-1, 1, 2)
        )[:, 0]
        return torch.where((timed.sum(1) >= LEAST_ARRIVAL_TIMES)[:, None], en_m_B2, mean_B2)

    def _polish(self, en_m_BK2: Tensor, toa_m_BR: Tensor, sigma_m_BR: Tensor, timed_BR: Tensor) -> Tensor:
        low = en_m_BK2.new_tensor([self.area.east_min_m - MARGIN_M, self.area.north_min_m - MARGIN_M])
        high = en_m_BK2.new_tensor([self.area.east_max_m + MARGIN_M, self.area.north_max_m + MARGIN_M])
        for scale_m in POLISHING_SCALES_M:
            distance, grad_e, grad_n = self.geometry.ranges_m(en_m_BK2)
            variance = (sigma_m_BR.square() + scale_m**2)[:, None]
            residual, weight = robust_residual(toa_m_BR[:, None] - distance, variance, timed_BR[:, None])
            step = gauss_newton_step(residual, weight, grad_e, grad_n, DAMPING)
            length = step.norm(dim=-1, keepdim=True)
            step = step * (LONGEST_STEP_M / length.clamp_min(LONGEST_STEP_M))
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
        receiver that ought to have heard the transmission and did not counts against a position."""
        mask = inputs.present_BR.to(range_m_BKR.dtype)[:, None]
        off = (inputs.power_dbm_BR - self.gain_db_R)[:, None] + self.slope_db * range_m_BKR.log()
        off = off - _weighted_mean(off, mask)
        # Undetected: power_dbm is the floor, so -off is the SNR that was to be expected.
        excess = (-off - self.threshold_db).clamp_min(0)
        return (torch.where(mask > 0, off, excess) / self.level_sigma_db).square().sum(-1) / 2


def robust_residual(residual_BKR: Tensor, variance_BKR: Tensor, timed_BKR: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals less the emission time (a reweighted mean), and Cauchy weights over the variance."""
    prior = timed_BKR / variance_BKR
    weight = prior
    for _ in range(3):
        off = residual_BKR - _weighted_mean(residual_BKR, weight)
        weight = prior / (1 + off.square() / variance_BKR)
    return residual_BKR - _weighted_mean(residual_BKR, weight), weight


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    return (weight * values).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp_min(1e-12)
