"""Numbers that say what a map shows. Maps and images are [B, C, H, W]; a metric returns one number for each image, [B].

x is the network's input (mean-subtracted image), as in nie2018.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation over all values of an image. 0 where one of them is constant."""
    return (_standard(a) * _standard(b)).sum(1)


def _standard(images: Tensor) -> Tensor:
    """Images [B, ...] as centred vectors [B, d] of norm 1; zeros for a constant image, whatever the rounding."""
    flat = images.flatten(1).double()
    centred = flat - flat.mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    constant = norm <= 1e-13 * flat.norm(dim=1, keepdim=True)
    return torch.where(constant, 0.0, centred / norm)


def pearson_per_channel(a: Tensor, b: Tensor) -> Tensor:
    """Mean over channels of the correlation within each: blind to an offset between the channels."""
    return torch.stack([pearson(a[:, c], b[:, c]) for c in range(a.shape[1])]).mean(0)


def luma(images: Tensor) -> Tensor:
    """Gray as ITU-R 601 and PIL's mode L have it, .299 R + .587 G + .114 B; other numbers of channels: their mean."""
    channels = images.shape[1]
    weights = images.new_tensor(
        [0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels, dtype=torch.float64
    )
    return (images.double() * weights.view(-1, 1, 1)).sum(1, keepdim=True)


def high_pass(images: Tensor, sigma: float = 2.0) -> Tensor:
    """Gray image minus its Gaussian blur: [B, 1, H, W]. The blur is `scipy.ndimage.gaussian_filter` with mode "mirror".

    The kernel is cut at 4 sigma, or at the border for an image that is smaller.
    """
    gray = luma(images)
    radius = min(int(4 * sigma + 0.5), gray.shape[-1] - 1, gray.shape[-2] - 1)
    offsets = torch.arange(-radius, radius + 1, device=gray.device, dtype=gray.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    blurred = F.pad(gray, (radius, radius, radius, radius), mode="reflect")
    blurred = F.conv2d(F.conv2d(blurred, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return gray - blurred


def high_pass_pearson(a: Tensor, b: Tensor, sigma: float = 2.0) -> Tensor:
    """HP: correlation of the gray high-passed images, the best measure of how far fine detail is recovered."""
    return pearson(high_pass(a, sigma), high_pass(b, sigma))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between two images."""
    return F.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1)


def unit_distance(a: Tensor, b: Tensor) -> Tensor:
    """l2 distance after each is divided by its l2 norm: between 0 and 2."""
    a, b = F.normalize(a.flatten(1).double()), F.normalize(b.flatten(1).double())
    return (a - b).norm(dim=1)


def minmax_distance(a: Tensor, b: Tensor) -> Tensor:
    """l2 distance after each is scaled to [0, 1], from its minimum to its maximum over all channels, as maps are shown."""

    def unit(maps: Tensor) -> Tensor:
        flat = maps.flatten(1).double()
        low = flat.amin(1, keepdim=True)
        return (flat - low) / (flat.amax(1, keepdim=True) - low).clamp(min=torch.finfo(torch.float64).tiny)

    return (unit(a) - unit(b)).norm(dim=1)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """l2 distance of the two as they are."""
    return (a.double() - b.double()).flatten(1).norm(dim=1)


def patch_weight(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """The matrix A of Theorem 1 as a map [B, 1, H, W]: at each pixel, the sum of 1 / ||y_j|| over the patches j on it.

    In a random three-layer CNN guided backpropagation tends to A x, not to x (nie2018, appendix B, without its
    assumption that all patches have the same norm). Patches of zero norm count 0; so do pixels that no patch covers.
    """
    ones = x.new_ones(1, 1, kernel_size, kernel_size, dtype=torch.float64)
    energy = x.double().square().sum(1, keepdim=True)
    norms = F.conv2d(energy, ones, stride=stride, padding=padding).clamp(min=0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    height, width = x.shape[-2:]
    uncovered = [(side + 2 * padding - kernel_size) % stride for side in (height, width)]
    return F.conv_transpose2d(inverse, ones, stride=stride, padding=padding, output_padding=uncovered)


def cosine_weighted(map_: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """cosL: cosine of map and image after dividing the map by `patch_weight`, 0 where that is 0."""
    return cosine(torch.where(weight > 0, map_.double() / weight, 0.0), x)


def tan2(cosine: Tensor) -> Tensor:
    """tan^2 of the angle: energy of the noise over that of the signal. Falls as 1/N (Theorem 1)."""
    return 1 / cosine**2 - 1


def grid4(maps: Tensor) -> Tensor:
    """g4: strength of a texture with a period of 4 pixels, about 1 where there is none.

    The power of the gray map's Fourier transform at a frequency over the median power of its neighbours (up to 5 bins
    away); of that the median over all 15 frequencies but 0 whose two parts are multiples of 1/4. Sides are cut to
    multiples of 4, so that these are bins.
    """
    gray = luma(maps)[:, 0]
    height, width = (side // 4 * 4 for side in gray.shape[1:])
    gray = gray[:, :height, :width]
    power = torch.fft.fft2(gray - gray.mean((1, 2), keepdim=True)).abs().square()
    reach = torch.arange(-5, 6)
    ratios = []
    for row, column in [(r * height // 4, c * width // 4) for r in range(4) for c in range(4)][1:]:
        near = power[:, (row + reach) % height][:, :, (column + reach) % width].flatten(1)
        around = torch.cat([near[:, :60], near[:, 61:]], dim=1)
        ratios.append(near[:, 60] / around.median(1).values)
    return torch.stack(ratios, dim=1).median(1).values


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of the two after min-max scaling to [0, 1]. It has a noise floor of .05 to .12."""
    from skimage.metrics import structural_similarity

    def unit(image: Tensor) -> Tensor:
        low, high = image.min(), image.max()
        return (image - low) / (high - low) if high > low else torch.zeros_like(image)

    return torch.tensor(
        [
            structural_similarity(
                unit(p).double().cpu().numpy(), unit(q).double().cpu().numpy(), channel_axis=0, data_range=1
            )
            for p, q in zip(a, b, strict=True)
        ],
        dtype=torch.float64,
    )


def sim(a: Tensor, b: Tensor) -> Tensor:
    """SIM (Judd et al. 2012): the common part of what is positive in two maps, each scaled to a sum of 1. From 0 to 1.

    NaN for a map with nothing positive.
    """
    p, q = (maps.double().flatten(1).relu() for maps in (a, b))
    return torch.minimum(p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)).sum(1)


def total_variation(maps: Tensor) -> Tensor:
    """How uneven maps are, whatever their scale: the sum of |differences| of neighbours over that of |values|. 0 to 4."""
    maps = maps.double()
    differences = sum(maps.diff(dim=dim).abs().flatten(1).sum(1) for dim in (2, 3))
    return differences / maps.abs().flatten(1).sum(1)


def unseen_activity(maps: Tensor, dead_rows: tuple[int, int]) -> Tensor:
    """mu of taimeskhanov2024, Eq. (7): the share of a map's l2 norm in the rows that the network cannot see, 0 to 1.

    dead_rows: the first and the last of them. NaN for a map of zeros, which has no mu.
    """
    first, last = dead_rows
    return maps[:, :, first : last + 1].double().flatten(1).norm(dim=1) / maps.double().flatten(1).norm(dim=1)


def average_drop(p: Tensor, p_masked: Tensor) -> Tensor:
    """By what share the probability [B] of a class falls when the image is masked by its map: max(0, p - p_masked) / p."""
    return (p - p_masked).relu() / p


# --- agreement of two maps, or of a map with people -------------------------------------------------------------------


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the ranks of all values; equal values share their mean rank. 0 where one of the maps is constant."""
    from scipy.stats import rankdata

    ranks = [torch.from_numpy(rankdata(m.flatten(1).double().cpu().numpy(), axis=1)) for m in (a, b)]
    return pearson(*ranks)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence sum p log(p / q) of the positive parts of two maps, each scaled to a sum of 1; q is the explanation.

    As in the MIT saliency benchmark (Bylinskii et al. 2016) 2.2e-16 is added where q is 0. NaN for a map with nothing
    positive.
    """
    p, q = (m.double().flatten(1).relu() for m in (p, q))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    tiny = torch.finfo(torch.float64).eps
    return (p * torch.log(tiny + p / (q + tiny))).sum(1)


def largest(maps: Tensor, share: float) -> Tensor:
    """The pixels with the largest values, `share` of all, summed over channels: a mask [B, 1, H, W]; equal ones by place."""
    flat = maps.double().sum(1).flatten(1)
    count = max(1, round(share * flat.shape[1]))
    chosen = flat.argsort(dim=1, descending=True, stable=True)[:, :count]
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, chosen, True)
    return mask.view(len(maps), 1, *maps.shape[2:])


def dice(a: Tensor, b: Tensor) -> Tensor:
    """Dice coefficient 2 |a and b| / (|a| + |b|) of two masks; 1 where both are empty."""
    both = (a & b).flatten(1).sum(1).double()
    total = a.flatten(1).sum(1) + b.flatten(1).sum(1)
    return torch.where(total > 0, 2 * both / total, 1.0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of two masks; 1 where both are empty."""
    union = (a | b).flatten(1).sum(1)
    return torch.where(union > 0, (a & b).flatten(1).sum(1).double() / union, 1.0)


def pointing_game(maps: Tensor, mask: Tensor) -> Tensor:
    """1 where the largest value of a map (summed over channels) lies in the mask [B, 1, H, W], else 0 (Zhang et al. 2018)."""
    place = maps.double().sum(1).flatten(1).argmax(1)
    return mask.flatten(1).gather(1, place[:, None])[:, 0].double()


def nss(maps: Tensor, fixations: Tensor) -> Tensor:
    """Normalised scanpath saliency: the mean of the standardised map at the fixated pixels, a mask [B, 1, H, W].

    0 for a constant map, NaN without fixations.
    """
    flat = maps.double().sum(1).flatten(1)
    standard = _standard(flat) * flat.shape[1] ** 0.5
    looked = fixations.flatten(1).double()
    return (standard * looked).sum(1) / looked.sum(1)


def auc_judd(maps: Tensor, fixations: Tensor) -> Tensor:
    """Area under the ROC curve of a map (summed over channels) as a classifier of the fixated pixels [B, 1, H, W].

    NaN where all or no pixels are fixated.
    """
    from sklearn.metrics import roc_auc_score

    areas = []
    for map_, looked in zip(maps.double().sum(1).flatten(1).cpu(), fixations.flatten(1).cpu(), strict=True):
        areas.append(roc_auc_score(looked, map_) if looked.any() and not looked.all() else float("nan"))
    return torch.tensor(areas, dtype=torch.float64)


def participation_ratio(maps: Tensor) -> Tensor:
    """On how many of its pixels a map's energy lies: (sum v^2)^2 / (n sum v^4), from 1/n (one pixel) to 1 (all alike)."""
    energy = maps.double().square().sum(1).flatten(1)
    return energy.sum(1).square() / (energy.shape[1] * energy.square().sum(1))
