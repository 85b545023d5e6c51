"""Slant ranges and Gauss-Newton steps on tensors. Shapes: B batch, R receivers; positions are (east, north), metres."""

import torch
from torch import Tensor, nn

from triangulation_pipeline.frame import surface_up_m
from triangulation_pipeline.network import ReceiverNetwork


class SiteGeometry(nn.Module):
    """The places of the receivers, as a buffer, and the ranges to them from the surface at ``altitude_m``."""

    site_enu_m_R3: Tensor

    def __init__(self, network: ReceiverNetwork, altitude_m: float) -> None:
        super().__init__()
        self.register_buffer("site_enu_m_R3", torch.tensor(network.site_enu_m, dtype=torch.float32), persistent=False)
        self.surface_coefficients = network.frame.surface_coefficients
        self.altitude_m = altitude_m

    def ranges_m(self, en_m_B2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ranges (..., R) and their gradients by east (..., R) and north (..., R) at positions (..., 2)."""
        up_m, (slope_e, slope_n) = surface_up_m(en_m_B2, self.surface_coefficients, self.altitude_m)
        de = en_m_B2[..., 0, None] - self.site_enu_m_R3[:, 0]
        dn = en_m_B2[..., 1, None] - self.site_enu_m_R3[:, 1]
        du = up_m[..., None] - self.site_enu_m_R3[:, 2]
        inverse = torch.rsqrt(de * de + dn * dn + du * du)
        return (
            1.0 / inverse,
            (de + du * slope_e[..., None]) * inverse,
            (dn + du * slope_n[..., None]) * inverse,
        )


def centred(values_BR: Tensor, weight_BR: Tensor) -> Tensor:
    """Values less their weighted mean over receivers, which eliminates the unknown emission time."""
    return values_BR - (weight_BR * values_BR).sum(-1, keepdim=True) / weight_BR.sum(-1, keepdim=True).clamp_min(1e-12)


def information(weight_BR: Tensor, grad_e_BR: Tensor, grad_n_BR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Position information (ee, nn, en), each (...,), of weighted pseudo-ranges with unknown emission time."""
    ge, gn = centred(grad_e_BR, weight_BR), centred(grad_n_BR, weight_BR)
    return (weight_BR * ge * ge).sum(-1), (weight_BR * gn * gn).sum(-1), (weight_BR * ge * gn).sum(-1)


def gauss_newton_step(
    residual_BR: Tensor, weight_BR: Tensor, grad_e_BR: Tensor, grad_n_BR: Tensor, damping: float
) -> Tensor:
    """Step (..., 2), metres, that lowers the weighted squared residuals; ``damping`` times the mean information is
    added to the information."""
    ge, gn = centred(grad_e_BR, weight_BR), centred(grad_n_BR, weight_BR)
    ee, nn_ = (weight_BR * ge * ge).sum(-1), (weight_BR * gn * gn).sum(-1)
    en = (weight_BR * ge * gn).sum(-1)
    be, bn = (weight_BR * ge * residual_BR).sum(-1), (weight_BR * gn * residual_BR).sum(-1)
    added = damping * (ee + nn_) / 2 + 1e-12
    ee, nn_ = ee + added, nn_ + added
    determinant = ee * nn_ - en * en
    return torch.stack([nn_ * be - en * bn, ee * bn - en * be], dim=-1) / determinant[..., None]
