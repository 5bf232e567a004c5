"""Changes of an image's colours, on batches: what torchvision's functions of these names do to one uint8 image.

Every function takes images uint8 (B, C, H, W), C being 1 or 3, and how much for each image, float64 (B,), and gives
images of the same shape. Floating-point operations are elementwise or exact, so that an image does not depend on
its batch.
"""

import torch
from torch import Tensor

TOP = 255.0  # the highest level


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """`factors` times as bright; 1 changes nothing, 0 gives black."""
    return _levels(images * _column(factors))


def colour(images: Tensor, factors: Tensor) -> Tensor:
    """Saturation `factors` times as strong; 0 gives grey. Images that are grey stay as they are."""
    return images if images.shape[1] == 1 else _blend(images, _grey(images), factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Differences from the image's mean grey `factors` times as large."""
    grey = _grey(images)
    mean = (grey.double().sum((1, 2, 3), keepdim=True) / grey[0].numel()).float()  # of whole numbers: an exact sum
    return _blend(images, mean, factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Away from (above 1) or towards (below 1) the image smoothed by 3×3 pixels; the border stays."""
    if min(images.shape[-2:]) <= 2:
        return images
    values = images.float()
    centre = values[:, :, 1:-1, 1:-1]
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    boxes = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = ((boxes + 4 * centre) / 13).round_()  # the centre counts five times
    centre += (smooth - centre) * _column(1 - factors)
    return _levels(values)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Only the `bits` highest bits of each level."""
    return images & _column((256 - 2.0 ** (8 - bits)).to(torch.uint8), torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Levels from `thresholds` on inverted."""
    return images ^ (images >= _column(thresholds)).to(torch.uint8) * 255  # torch.where is far slower


def autocontrast(images: Tensor, unused: Tensor) -> Tensor:
    """Each channel stretched to the whole range; one of a single level stays."""
    low, high = (edge.float() for edge in (images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)))
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1 / TOP))
    return _levels((images - torch.where(flat, 0.0, low)) / scale)


def equalize(images: Tensor, unused: Tensor) -> Tensor:
    """Each channel's levels spread as evenly as may be (by PIL's rule, in whole numbers)."""
    flat = images.flatten(0, 1).flatten(1).long()  # (B·C, pixels)
    counts = torch.zeros(len(flat), 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    below = counts.cumsum(1)
    last = counts.gather(1, flat.amax(1, keepdim=True))  # pixels of the highest level
    step = (flat.shape[1] - last) // 255
    table = (below - counts + step // 2) // step.clamp(min=1)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table.clamp_(max=255))
    return table.to(torch.uint8).gather(1, flat).view_as(images)


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """factor·image + (1 - factor)·other."""
    return _levels(images * _column(factors) + others * _column(1 - factors))


def _grey(images: Tensor) -> Tensor:
    """Whole grey levels float32 (B, 1, H, W), rounded down (ITU-R 601)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor_()


def _levels(values: Tensor) -> Tensor:
    """uint8 from floating-point levels, which are cut to 0–255 and rounded down."""
    return values.clamp_(0, TOP).to(torch.uint8)


def _column(values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values.to(dtype).view(-1, 1, 1, 1)
