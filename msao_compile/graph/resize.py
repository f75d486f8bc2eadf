"""Antialiased resizing as two products with matrices made of lengths: no node that engines do not know."""

from __future__ import annotations

from typing import Any

import torch


def interpolated(
    tensor: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    """`torch.nn.functional.interpolate` of [B, C, H, W] with `antialias` to a given size; the rest is left alone."""
    pair = isinstance(size, tuple | list) and len(size) == 2
    if not (antialias and pair and mode in ("bilinear", "bicubic") and not align_corners and tensor.ndim == 4):
        return NotImplemented
    high, wide = size
    rows = _weights(high, tensor.shape[2], mode)
    columns = _weights(wide, tensor.shape[3], mode)
    return rows @ (tensor.float() @ columns.transpose(0, 1)).to(tensor.dtype)


def _weights(out: Any, into: Any, mode: str) -> torch.Tensor:
    """[out, into]: how much of each old place each new place takes (torch's upsample kernels, scale in / out)."""
    scale = torch.scalar_tensor(into, dtype=torch.float32) / torch.scalar_tensor(out, dtype=torch.float32)
    stretch = scale.clamp(min=1.0)
    centre = (torch.arange(out) + 0.5) * scale
    distance = ((torch.arange(into) + 0.5 - centre[:, None]) / stretch).abs()
    if mode == "bilinear":
        weight = (1.0 - distance).clamp(min=0.0)
    else:  # Keys' cubic with -0.5, as antialiasing has it
        near = (1.5 * distance - 2.5) * distance * distance + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        weight = torch.where(distance < 1.0, near, torch.where(distance < 2.0, far, 0.0))
    return weight / weight.sum(-1, keepdim=True)
