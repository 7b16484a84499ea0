"""Metrics of maps. Maps and images are [B, C, H, W]; a metric returns one number per image, [B].

x is the network's input (the mean-subtracted image), as in nie2018.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation over all values of an image; 0 if `a` or `b` is constant."""
    return (_standard(a) * _standard(b)).sum(1)


def _standard(images: Tensor) -> Tensor:
    """Centre images [B, ...] and normalise them to vectors [B, d] of norm 1; zeros if constant up to rounding."""
    flat = images.flatten(1).double()
    centred = flat - flat.mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    constant = norm <= 1e-13 * flat.norm(dim=1, keepdim=True)
    return torch.where(constant, 0.0, centred / norm)


def pearson_per_channel(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean over channels of the correlation in each, which ignores offsets between channels."""
    return torch.stack([pearson(a[:, c], b[:, c]) for c in range(a.shape[1])]).mean(0)


def luma(images: Tensor) -> Tensor:
    """Return gray images as ITU-R 601 and PIL's mode L do, .299 R + .587 G + .114 B; the mean if not RGB."""
    channels = images.shape[1]
    weights = images.new_tensor(
        [0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels, dtype=torch.float64
    )
    return (images.double() * weights.view(-1, 1, 1)).sum(1, keepdim=True)


def strength(maps: Tensor) -> Tensor:
    """Return the largest absolute value over the channels: [B, 1, H, W] in float64."""
    return maps.double().abs().amax(1, keepdim=True)


def sobel(pixels: Tensor) -> Tensor:
    """Return the Sobel gradient magnitude [B, 1, H, W] of the gray versions of images [B, C, H, W]."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)[None, None]
    gray = F.pad(luma(pixels.double()), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(gray, torch.cat([kernel, kernel.mT])).norm(dim=1, keepdim=True)


def clipped(maps: Tensor) -> Tensor:
    """Return the strength of maps over its 99.5th percentile, at most 1: [B, 1, H, W]; zeros for a map without strength."""
    v = strength(maps)
    top = v.flatten(1).quantile(0.995, dim=1).view(-1, 1, 1, 1)
    return (v / top.clamp(min=torch.finfo(v.dtype).tiny)).clamp(max=1)


def high_pass(images: Tensor, sigma: float = 2.0) -> Tensor:
    """Subtract the Gaussian blur from the gray image: [B, 1, H, W].

    The blur is `scipy.ndimage.gaussian_filter` with mode "mirror", truncated at 4 sigma or at the size of a small image.
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
    """Return HP, the correlation of the high-passed gray images: the best measure of the recovery of fine detail."""
    return pearson(high_pass(a, sigma), high_pass(b, sigma))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of the angle between two images."""
    return F.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1)


def unit_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the l2 distance after dividing each by its l2 norm: between 0 and 2."""
    a, b = F.normalize(a.flatten(1).double()), F.normalize(b.flatten(1).double())
    return (a - b).norm(dim=1)


def minmax_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the l2 distance after min-max scaling each to [0, 1] over all channels, as maps are shown."""

    def unit(maps: Tensor) -> Tensor:
        flat = maps.flatten(1).double()
        low = flat.amin(1, keepdim=True)
        return (flat - low) / (flat.amax(1, keepdim=True) - low).clamp(min=torch.finfo(torch.float64).tiny)

    return (unit(a) - unit(b)).norm(dim=1)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the l2 distance without any scaling."""
    return (a.double() - b.double()).flatten(1).norm(dim=1)


def patch_weight(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """Return the matrix A of Theorem 1 as a map [B, 1, H, W]: at each pixel, the sum of 1 / ||y_j|| over its patches j.

    In a random three-layer CNN guided backpropagation tends to A x, not to x (nie2018, appendix B, without its
    assumption that all patches have the same norm). Patches of zero norm count 0; pixels outside all patches are 0.
    """
    ones = x.new_ones(1, 1, kernel_size, kernel_size, dtype=torch.float64)
    energy = x.double().square().sum(1, keepdim=True)
    norms = F.conv2d(energy, ones, stride=stride, padding=padding).clamp(min=0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    height, width = x.shape[-2:]
    uncovered = [(side + 2 * padding - kernel_size) % stride for side in (height, width)]
    return F.conv_transpose2d(inverse, ones, stride=stride, padding=padding, output_padding=uncovered)


def cosine_weighted(map_: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return cosL, the cosine of image and map after dividing the map by `patch_weight` (0 where the weight is 0)."""
    return cosine(torch.where(weight > 0, map_.double() / weight, 0.0), x)


def tan2(cosine: Tensor) -> Tensor:
    """Return tan^2 of the angle, the energy of the noise over that of the signal. It falls as 1/N (Theorem 1)."""
    return 1 / cosine**2 - 1


def grid4(maps: Tensor) -> Tensor:
    """Return g4, the strength of a texture with a period of 4 pixels; about 1 without such a texture.

    At each of the 15 nonzero frequencies whose two components are multiples of 1/4, divide the power of the gray map's
    Fourier transform by the median power of its neighbours (up to 5 bins away); g4 is the median of these ratios. Sides
    are cropped to multiples of 4, so that the frequencies are bins.
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


def ssim(a: Tensor, b: Tensor, *, window: int = 7, data_range: float = 1.0) -> Tensor:
    """Return the structural similarity after min-max scaling to [0, 1]. Its noise floor is .05 to .12.

    window: its side, odd. data_range: the range from which the constants C1 and C2 follow; 1 is that of the scaled maps.
    """
    from skimage.metrics import structural_similarity

    def unit(image: Tensor) -> Tensor:
        low, high = image.min(), image.max()
        return (image - low) / (high - low) if high > low else torch.zeros_like(image)

    return torch.tensor(
        [
            structural_similarity(
                unit(p).double().cpu().numpy(),
                unit(q).double().cpu().numpy(),
                win_size=window,
                channel_axis=0,
                data_range=data_range,
            )
            for p, q in zip(a, b, strict=True)
        ],
        dtype=torch.float64,
    )


def sim(a: Tensor, b: Tensor) -> Tensor:
    """Return SIM (Judd et al. 2012), the sum of the minimum of the positive parts, each scaled to a sum of 1: 0 to 1.

    NaN for a map without positive values.
    """
    p, q = (maps.double().flatten(1).relu() for maps in (a, b))
    return torch.minimum(p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)).sum(1)


def total_variation(maps: Tensor) -> Tensor:
    """Return the sum of |differences| of neighbours over the sum of |values|, which ignores the scale: 0 to 4."""
    maps = maps.double()
    differences = sum(maps.diff(dim=dim).abs().flatten(1).sum(1) for dim in (2, 3))
    return differences / maps.abs().flatten(1).sum(1)


def unseen_activity(maps: Tensor, dead_rows: tuple[int, int]) -> Tensor:
    """Return mu of taimeskhanov2024, Eq. (7): the share of a map's l2 norm in rows the network cannot see, 0 to 1.

    dead_rows: the first and the last of these rows. NaN for a map of zeros, where mu is undefined.
    """
    first, last = dead_rows
    return maps[:, :, first : last + 1].double().flatten(1).norm(dim=1) / maps.double().flatten(1).norm(dim=1)


def localisation(maps: Tensor, rows: slice, columns: slice) -> Tensor:
    """Return the share of the positive part of the maps that lies in some rows and columns, 0 to 1 (Rao et al. 2022, Eq. 1).

    NaN for a map without positive values, where the authors take 0.
    """
    positive = maps.double().relu()
    return positive[:, :, rows, columns].flatten(1).sum(1) / positive.flatten(1).sum(1)


def average_drop(p: Tensor, p_masked: Tensor) -> Tensor:
    """Return the relative drop of a class probability [B] under masking by the map: max(0, p - p_masked) / p."""
    return (p - p_masked).relu() / p


# --- agreement of two maps, or of a map with people -------------------------------------------------------------------


def ranks(maps: Tensor) -> Tensor:
    """Return the rank of each value of an image among all its values, [B, n]; ties share their mean rank."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(maps.flatten(1).double().cpu().numpy(), axis=1))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Return the rank correlation of all values; ties share their mean rank. 0 if one of the maps is constant."""
    return pearson(ranks(a), ranks(b))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return the KL divergence sum p log(p / q) of the positive parts, each scaled to a sum of 1; q is the explanation.

    2.2e-16 is added to q and to the ratio, as in the MIT saliency benchmark (Bylinskii et al. 2016). NaN for a map
    without positive values.
    """
    p, q = (m.double().flatten(1).relu() for m in (p, q))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    tiny = torch.finfo(torch.float64).eps
    return (p * torch.log(tiny + p / (q + tiny))).sum(1)


def largest(maps: Tensor, share: float) -> Tensor:
    """Return a mask [B, 1, H, W] of the largest pixels, `share` of all, after summing channels; ties by position."""
    flat = maps.double().sum(1).flatten(1)
    count = max(1, round(share * flat.shape[1]))
    chosen = flat.argsort(dim=1, descending=True, stable=True)[:, :count]
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, chosen, True)
    return mask.view(len(maps), 1, *maps.shape[2:])


def dice(a: Tensor, b: Tensor) -> Tensor:
    """Return the Dice coefficient 2 |a and b| / (|a| + |b|) of two masks; 1 if both are empty."""
    both = (a & b).flatten(1).sum(1).double()
    sizes = a.flatten(1).sum(1) + b.flatten(1).sum(1)
    return torch.where(sizes > 0, 2 * both / sizes, 1.0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union of two masks; 1 if both are empty."""
    union = (a | b).flatten(1).sum(1)
    return torch.where(union > 0, (a & b).flatten(1).sum(1).double() / union, 1.0)


def pointing_game(maps: Tensor, mask: Tensor) -> Tensor:
    """Return 1 if a map's maximum, after summing channels, lies in the mask [B, 1, H, W], else 0 (Zhang et al. 2018)."""
    place = maps.double().sum(1).flatten(1).argmax(1)
    return mask.flatten(1).gather(1, place[:, None])[:, 0].double()


def nss(maps: Tensor, fixations: Tensor) -> Tensor:
    """Return the normalised scanpath saliency, the mean of the standardised map at the fixations (mask [B, 1, H, W]).

    0 for a constant map, NaN without fixations.
    """
    flat = maps.double().sum(1).flatten(1)
    standard = _standard(flat) * flat.shape[1] ** 0.5
    looked = fixations.flatten(1).double()
    return (standard * looked).sum(1) / looked.sum(1)


def auc_judd(maps: Tensor, fixations: Tensor) -> Tensor:
    """Return the area under the ROC curve of a map, summed over channels, as a classifier of fixations [B, 1, H, W].

    NaN if all or no pixels are fixated.
    """
    from sklearn.metrics import roc_auc_score

    areas = []
    for map_, looked in zip(maps.double().sum(1).flatten(1).cpu(), fixations.flatten(1).cpu(), strict=True):
        areas.append(roc_auc_score(looked, map_) if looked.any() and not looked.all() else float("nan"))
    return torch.tensor(areas, dtype=torch.float64)


def participation_ratio(maps: Tensor) -> Tensor:
    """Return the fraction of pixels that carry a map's energy, (sum v^2)^2 / (n sum v^4): 1/n (one pixel) to 1 (uniform)."""
    energy = maps.double().square().sum(1).flatten(1)
    return energy.sum(1).square() / (energy.shape[1] * energy.square().sum(1))
