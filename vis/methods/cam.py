"""Class activation maps: weighted sums of the feature maps B [V, h, w] of a layer (taimeskhanov2024, Definitions 1-7).

    map = ReLU(sum_v alpha_v * B_v), upsampled to the image (bilinear, half-pixel centres)

CAMs differ in the weights alpha. B is the layer's output, after the last ReLU in the networks of the paper; `reshape` makes
feature maps of tokens. The gradient is G = df/dB, f the target. There are two conventions:

    paper   the definitions as printed. Maps are not scaled.
    table1  the code behind the paper's numbers (the grad-cam package): x = (x - min) / (1e-7 + max) before the upsampling and
            after it, and the package's variants of GradCAM++, XGradCAM and ScoreCAM.

Maps are [B, 1, H, W] and not negative. CAMs of one image share the forward pass and the gradient at the layer:
`explain_all`. Raises NotApplicable where the layer gives no feature maps [B, V, h, w].
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.graph.modes import evaluating
from vis.methods.baseline import Baseline, baseline_image, in_words, only
from vis.methods.bfloat16 import ChangesInBfloat16, InBfloat16
from vis.methods.forward import Forward, NotApplicable, Preprocessing, check_images, in_passes, output_targets
from vis.methods.from_layer import Reader, readers, run_from, run_rest, run_to
from vis.methods.layers import OnFeatureMaps, Reshape
from vis.methods.target import Target, Targets, score
from vis.system.device import mixed_in_bfloat16

_EXACT = 64  # with precision=mixed, ScoreCAM computes the largest of so many scores again in float32


class ActivationMap(OnFeatureMaps):
    """Base class of class activation maps. A subclass implements `sum`, for instance from `self.maps` and `self.gradients`.

    convention: paper, or table1, the code behind the numbers of taimeskhanov2024 (see above).
    """

    def __init__(self, layer: str | None = None, convention: str = "paper", reshape: Reshape | None = None) -> None:
        if convention not in ("paper", "table1"):
            raise ValueError(f"convention is paper or table1, not {convention!r}")
        super().__init__(layer, reshape)
        self.convention = convention

    def why_zero(self) -> str:
        constant = "constant or " if self.convention == "table1" else ""
        return f"the weighted sum of the feature maps is {constant}nowhere positive"

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        (layer,) = self.layers(forward.model, forward.images)
        return finish(self.sum(forward, targets, layer), forward.images.shape[-2:], self.convention)

    @abstractmethod
    def sum(self, forward: Forward, targets: Targets, layer: str) -> Tensor:
        """Return sum_v alpha_v * B_v: [B, h, w], signed."""


def finish(maps: Tensor, size: torch.Size, convention: str) -> Tensor:
    """Apply ReLU and upsampling: [B, h, w] -> [B, 1, H, W]; the convention table1 scales before and after."""

    def scaled(maps: Tensor) -> Tensor:
        maps = maps - maps.amin((-2, -1), keepdim=True)
        return maps / (1e-7 + maps.amax((-2, -1), keepdim=True))

    maps = maps.relu()[:, None]
    if convention == "paper":
        return F.interpolate(maps, size, mode="bilinear")
    return scaled(F.interpolate(scaled(maps), size, mode="bilinear"))


def weigh(weights: Tensor, B: Tensor) -> Tensor:
    """Return sum_v alpha_v * B_v: [B, V] and [B, V, h, w] -> [B, h, w]."""
    return torch.einsum("bv,bvhw->bhw", weights, B)


# --- from the gradient at the layer ----------------------------------------------------------------------------------


class _GradientCAM(ActivationMap):
    def sum(self, forward: Forward, targets: Targets, layer: str) -> Tensor:
        return self.of_gradient(self.maps(forward, layer), self.gradients(forward, targets, layer))

    @abstractmethod
    def of_gradient(self, B: Tensor, G: Tensor) -> Tensor:
        """Return sum_v alpha_v * B_v [B, h, w] from the feature maps and the target's gradient, both [B, V, h, w]."""


class GradCAM(_GradientCAM):
    """GradCAM (Selvaraju et al. 2017; taimeskhanov2024, Definition 1; ayyar2021, Eq. 9-10): gradients averaged over a map.

        alpha_v = mean(G_v)

    Costs a shared forward pass and a backward pass to the layer, which all CAMs of a gradient share.
    """

    title = "GradCAM"

    def of_gradient(self, B: Tensor, G: Tensor) -> Tensor:
        return weigh(G.mean((2, 3)), B)


class GradCAMPlusPlus(_GradientCAM):
    """GradCAM++ (Chattopadhay et al. 2018; taimeskhanov2024, Definition 3): positive gradients and higher derivatives.

        alpha_v = mean(ReLU(G_v) * D2 / (2 D2 + ||B_v||_1 D3))

    D2 and D3 are the second and third derivatives, which are 0 in a ReLU network. As the authors do, the method replaces f by
    exp(f), up to a factor: D2 = G^2, D3 = G^3. The mean is then over G / (2 + ||B_v||_1 G), where G > 0. table1 takes the sum,
    with 1e-6 in the denominator, which dominates where gradients are small.
    Costs a shared forward pass and a backward pass to the layer, which all CAMs of a gradient share.
    """

    title = "GradCAM++"

    def of_gradient(self, B: Tensor, G: Tensor) -> Tensor:
        positive = G.relu()
        if self.convention == "paper":
            return weigh((positive / (2 + B.abs().sum((2, 3), keepdim=True) * positive)).mean((2, 3)), B)
        D2, D3 = positive**2, positive**3
        return weigh((positive * D2 / (2 * D2 + B.sum((2, 3), keepdim=True) * D3 + 1e-6)).sum((2, 3)), B)


class XGradCAM(_GradientCAM):
    """XGradCAM (Fu et al. 2020; taimeskhanov2024, Definition 2): gradients averaged with the feature map as weights.

        alpha_v = mean(B_v / ||B_v||_1 * G_v)

    table1 takes the sum, over sum(B_v) + 1e-7: only another scale where feature maps are not negative.
    Costs a shared forward pass and a backward pass to the layer, which all CAMs of a gradient share.
    """

    title = "XGradCAM"

    def of_gradient(self, B: Tensor, G: Tensor) -> Tensor:
        if self.convention == "table1":
            return weigh((G * B).sum((2, 3)) / (B.sum((2, 3)) + 1e-7), B)
        norm = B.abs().sum((2, 3))
        return weigh((G * B).mean((2, 3)) / torch.where(norm > 0, norm, 1), B)  # a map of zeros gets no weight


class HiResCAM(_GradientCAM):
    """HiResCAM (Draelos & Carin 2021; taimeskhanov2024, Definition 4): gradient times feature map, position by position.

        map = ReLU(sum_v G_v * B_v)

    Costs a shared forward pass and a backward pass to the layer, which all CAMs of a gradient share.
    """

    title = "HiResCAM"

    def of_gradient(self, B: Tensor, G: Tensor) -> Tensor:
        return (G * B).sum(1)


class LayerCAM(_GradientCAM):
    """LayerCAM (Jiang et al. 2021): positive gradient times feature map, position by position.

        map = ReLU(sum_v ReLU(G_v) * B_v)

    Costs a shared forward pass and a backward pass to the layer, which all CAMs of a gradient share.
    """

    title = "LayerCAM"

    def of_gradient(self, B: Tensor, G: Tensor) -> Tensor:
        return (G.relu() * B).sum(1)


# --- from the feature maps alone -------------------------------------------------------------------------------------


class _PrincipalAxis(ActivationMap):
    def __init__(
        self, layer: str | None = None, convention: str = "paper", sign: int = 1, reshape: Reshape | None = None
    ) -> None:
        super().__init__(layer, convention, reshape)
        if sign not in (1, -1):
            raise ValueError(f"sign is 1 or -1, not {sign}")
        self.sign = sign

    def project(self, features: Tensor) -> Tensor:
        """Project feature vectors at their positions [B, V, h, w], centred, onto their first principal axis: [B, h, w]."""
        X = features.flatten(2).mT  # [B, h w, V]
        X = X - X.mean(1, keepdim=True)
        # X v for the first right singular vector v, from the eigenvectors of the smaller of X X^T and X^T X.
        if X.shape[1] <= X.shape[2]:
            values, vectors = torch.linalg.eigh(X @ X.mT)
            projection = vectors[..., -1] * values[:, -1:].clamp(min=0).sqrt()
        else:
            projection = (X @ torch.linalg.eigh(X.mT @ X)[1][..., -1:])[..., 0]
        largest = projection.gather(1, projection.abs().argmax(1, keepdim=True))
        return (projection * self.sign * torch.where(largest < 0, -1, 1)).view(len(features), *features.shape[2:])


class EigenCAM(_PrincipalAxis):
    """EigenCAM (Muhammad & Yeasin 2020): the projection of the centred feature vectors onto their first principal axis.

        map = ReLU(X e)        X [h w, V] the centred feature vectors, e its first right singular vector

    The sign of that axis is arbitrary. sign=1 makes the value with the largest magnitude positive, sign=-1 negative. The map
    does not depend on the target.
    Costs a shared forward pass and the eigenvectors of a square matrix whose side is the smaller of h w and V. Called directly
    without a target, it runs the network only up to the layer; with precision=mixed on a CPU that multiplies in bfloat16, this
    pass is in bfloat16.
    """

    title = "EigenCAM"

    def __call__(
        self, model: nn.Module, images: Tensor, targets: Targets = None, preprocess: Preprocessing | None = None
    ) -> Tensor:
        if targets is None and images.ndim == 4 and self.reshape is None:
            check_images(model, images)
            (layer,) = self.layers(model, images)
            with evaluating(model), torch.no_grad():
                with InBfloat16() if mixed_in_bfloat16(images.device) else nullcontext():
                    B = run_to(model, images, layer)
                if B is not None and B.ndim == 4:
                    return finish(self.project(B.to(images.dtype)), images.shape[-2:], self.convention)
        return super().__call__(model, images, targets, preprocess)

    def sum(self, forward: Forward, targets: Targets, layer: str) -> Tensor:
        forward.scores(targets)  # raises for a unit that is not there, as for every method
        return self.project(self.maps(forward, layer))


class EigenGradCAM(_PrincipalAxis):
    """EigenGradCAM (the grad-cam package, Gildenblat 2021): EigenCAM of the feature maps times the target's gradient.

        map = ReLU(X e)        X [h w, V] the vectors G * B, centred, e its first right singular vector

    sign: of the axis e, as in EigenCAM.
    Costs what EigenCAM does, and a backward pass to the layer, which all CAMs of a gradient share.
    """

    title = "EigenGradCAM"

    def sum(self, forward: Forward, targets: Targets, layer: str) -> Tensor:
        return self.project(self.maps(forward, layer) * self.gradients(forward, targets, layer))


# --- from other outputs of the network -------------------------------------------------------------------------------


def masks(B: Tensor, size: torch.Size, convention: str = "paper") -> Tensor:
    """Return H = s(Up(B)): feature maps [..., h, w] upsampled and scaled to [0, 1], [..., H, W]; constant ones become 0.

    table1: corners aligned, 1e-8 in the denominator.
    """
    aligned = convention == "table1"
    up = F.interpolate(B[None] if B.ndim == 3 else B, size, mode="bilinear", align_corners=aligned).view(
        *B.shape[:-2], *size
    )
    low, high = up.amin((-2, -1), keepdim=True), up.amax((-2, -1), keepdim=True)
    span = high - low + 1e-8 * aligned
    return (up - low) / torch.where(high > low, span, 1)


class ScoreCAM(ActivationMap):
    """ScoreCAM (Wang et al. 2020; taimeskhanov2024, Definition 5): the logits of the image masked by each feature map.

        alpha = softmax over v of f(x * H_v)        H_v = s(Up(B_v)), scaled to [0, 1]

    The definition's baseline f(x_b) cancels in the softmax. Raises NotApplicable for a unit of another layer.
    Costs a forward pass for each feature map of each image, a few at a time, beside the shared one; constant feature maps mask
    the whole image and share one pass. With precision=mixed on a CPU that multiplies in bfloat16, the masked passes are in
    bfloat16, and those with the largest scores, one in 64, run again in float32.
    """

    title = "ScoreCAM"
    mixed_error = 0.01

    def passes(self, model: nn.Module, image: Tensor) -> float:
        (layer,) = self.layers(model, image)
        with Forward(model, image, [layer]) as forward:
            return self.maps(forward, layer).shape[1]

    def sum(self, forward: Forward, targets: Targets, layer: str) -> Tensor:
        B, images = self.maps(forward, layer), forward.images.detach()
        chosen = output_targets(forward, targets, self.title)
        weights = [self._scores(forward.model, *each).softmax(0) for each in zip(images, B, chosen, strict=True)]
        return weigh(torch.stack(weights), B)

    @torch.no_grad()
    def _scores(self, model: nn.Module, image: Tensor, B: Tensor, target: Target) -> Tensor:
        """Compute f(x * H_v), [V], of an image [C, H, W] and its feature maps [V, h, w]."""
        constant, scores = B.amin((1, 2)) == B.amax((1, 2)), B.new_empty(len(B))

        def compute(channels: Tensor) -> None:
            for some in in_passes(channels, image.numel()):
                masked = image * masks(B[some], image.shape[-2:], self.convention)[:, None]
                scores[some] = score(model(masked).to(B.dtype), [target] * len(some))

        low = mixed_in_bfloat16(B.device)
        with InBfloat16() if low else nullcontext():
            if constant.any():
                scores[constant] = score(model(torch.zeros_like(image)[None]).to(B.dtype), [target])
            compute((~constant).nonzero()[:, 0])
        if low:  # the softmax gives the largest scores most of the weight, and so of the error
            compute(scores.topk(len(B) // _EXACT).indices)
        return scores


class AblationCAM(ActivationMap):
    """AblationCAM (Desai & Ramaswamy 2020; taimeskhanov2024, Definition 7): the target's relative drop without a feature map.

        alpha_v = (y - y_v) / y        y the target, y_v the same with B_v = 0

    Raises NotApplicable for a unit of another layer.
    Costs, beside the shared forward pass, a pass through the network behind the layer for each feature map that is not 0. Where
    the convolutions and dense layers that read the layer take each map at inputs of its own, products give z_v = z - W_v P_v for
    all v, and the network runs from there. With global average pooling and one dense layer, y_v = y - w_v mean(B_v).
    With precision=mixed on a CPU that multiplies in bfloat16, the layers behind multiply their changes from y's pass in it.
    """

    title = "AblationCAM"
    mixed_error = 0.01

    @torch.no_grad()
    def sum(self, forward: Forward, targets: Targets, layer: str) -> Tensor:
        model, images, B = forward.model, forward.images.detach(), self.maps(forward, layer)
        A = forward.layers[layer].detach()
        places = self.places(A, layer)
        chosen = output_targets(forward, targets, self.title)
        read = readers(model, images, layer, B) if self.reshape is None else []
        weights = torch.zeros_like(B[:, :, 0, 0])
        for i, target in enumerate(chosen):
            live = B[i].flatten(1).any(1).nonzero()[:, 0]  # without a map of zeros, nothing changes
            parts = (
                _ablated_before(read, i, live, model, images, {layer: A[:1]})
                if read
                else _ablated_at(layer, A[i], places[live], model, images[i : i + 1])
            )
            drops = []
            with ChangesInBfloat16() if mixed_in_bfloat16(B.device) else nullcontext():
                for outputs in parts:
                    y, y_v = score(outputs, [target] * len(outputs)).split([1, len(outputs) - 1])
                    drops.append((y - y_v) / torch.where(y == 0, 1, y))
            weights[i, live] = torch.cat(drops) if drops else 0
        return weigh(weights, B)


def _ablated_at(layer: str, A: Tensor, places: Tensor, model: nn.Module, image: Tensor) -> Iterator[Tensor]:
    """Yield outputs [1 + n, K]: of a layer's values A [...], and of A with 0 at n of the m sets of flat places [m, h, w]."""
    for some in in_passes(places, A.numel()):
        rows = A.new_empty(1 + len(some), *A.shape)
        rows[:] = A
        rows.flatten(1)[1:].scatter_(1, some.flatten(1), 0)
        yield run_rest(model, image, layer, rows)


def _ablated_before(
    read: list[Reader], i: int, live: Tensor, model: nn.Module, images: Tensor, one: dict[str, Tensor]
) -> Iterator[Tensor]:
    """Yield the same of image i from what its readers give without each of the live feature maps [m].

    one: values of the layer for one image, since not everything between it and the readers takes an empty batch.
    """
    for some in in_passes(live, max(reader.z[i].numel() for reader in read)):
        without = {reader.name: reader.without(i, some) for reader in read}
        yield run_from(model, images[:0], {**one, **without}, rows=1 + len(some))


class OptiCAM(ActivationMap):
    """Opti-CAM (Zhang et al. 2023; taimeskhanov2024, Definition 6): the weights whose mask keeps the target largest.

        alpha = softmax(beta), beta = argmax f(x * H)        H = s(Up(sum_v alpha_v B_v)), scaled to [0, 1]

    Adam starts from equal weights, and the best of its steps counts, so that the map is never worse than equal weights. f
    oscillates on the way: all `iterations` run, except for an image whose mask does not depend on the weights.
    baseline: the content of masked pixels (`vis.methods.baseline`). Black masks the pixels before the preprocessing, zero masks
    the network's input. Raises NotApplicable for a unit of another layer, and for black pixels without `preprocess`.
    Costs `iterations` forward and backward passes beside the shared forward pass.
    """

    title = "Opti-CAM"

    def __init__(
        self,
        layer: str | None = None,
        convention: str = "paper",
        iterations: int = 50,
        lr: float = 0.1,
        baseline: Baseline = "black",
        reshape: Reshape | None = None,
    ) -> None:
        super().__init__(layer, convention, reshape)
        if iterations < 1 or lr <= 0:
            raise ValueError("iterations is 1 or more, lr above 0")
        self.iterations = iterations
        self.lr = lr
        self.baseline = only(baseline)

    @property
    def words(self) -> str:
        return f"masking to {in_words(self.baseline)}"

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return 2 * self.iterations

    def sum(self, forward: Forward, targets: Targets, layer: str) -> Tensor:
        B, images = self.maps(forward, layer), forward.images.detach()
        chosen = output_targets(forward, targets, self.title)
        black = baseline_image(images, self.baseline, forward.preprocess, part=True).expand_as(images)
        beta = torch.full_like(B[:, :, 0, 0], 0.5).requires_grad_()
        best, largest = beta.detach().clone(), B.new_full((len(B),), -torch.inf)
        adam = torch.optim.Adam([beta], self.lr)
        idle = B.amin((2, 3)) == B.amax((2, 3))  # constant maps do not change H; Adam would blow up the rounding error
        going = torch.arange(len(B), device=B.device)
        for step in range(self.iterations + 1):
            H = masks(weigh(beta[going].softmax(1), B[going]), images.shape[-2:])[:, None]
            scores = score(
                forward.model(H * images[going] + (1 - H) * black[going]), [chosen[i] for i in going.tolist()]
            )
            f = scores.detach()
            better = going[f > largest[going]]
            best[better] = beta.detach()[better]
            largest[going] = torch.maximum(largest[going], f)
            if step == self.iterations:
                break
            beta.grad = torch.autograd.grad(-scores.sum(), beta)[0].masked_fill(idle, 0)
            if step == 0 and not len(going := beta.grad.any(1).nonzero()[:, 0]):
                break
            adam.step()
        return weigh(best.softmax(1), B)


class CAM(ActivationMap):
    """CAM (Zhou et al. 2016; ayyar2021, section 4.6): alpha_v is the weight of feature map v in the logit.

        S_c = sum_v alpha_v mean(B_v) + b_c

    A ReLU before the pooling (DenseNet) counts as part of the feature maps. Raises NotApplicable for a network that does not end
    in global average pooling and one dense layer, and for anything but a logit.
    Costs a shared forward pass.
    """

    title = "CAM"

    @torch.no_grad()
    def sum(self, forward: Forward, targets: Targets, layer: str) -> Tensor:
        B = self.maps(forward, layer)
        chosen = output_targets(forward, targets, self.title)
        read = readers(forward.model, forward.images.detach(), layer, B) if self.reshape is None else []
        if any(target.output != "logit" for target in chosen):
            raise NotApplicable("CAM explains logits, not probabilities")
        if len(read) == 1 and isinstance(read[0].module, nn.Linear) and _equal(read[0].z, forward.logits):
            for features in (B, B.relu()):
                if _equal(read[0].shares.flatten(1), features.mean((2, 3))):
                    return weigh(read[0].module.weight[[target.unit for target in chosen]], features)
        raise NotApplicable(
            f"CAM needs global average pooling of layer {layer} and one dense layer, which {type(forward.model).__name__} "
            "does not end in: use gradcam, its generalisation"
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Tell whether a and b are equal up to the order of sums."""
    return a.shape == b.shape and bool((a - b).norm() <= min(1e3 * torch.finfo(a.dtype).eps, 0.02) * b.norm())
