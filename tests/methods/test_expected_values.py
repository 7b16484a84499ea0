"""Every method gives the maps that follow by hand for small networks of the literature and of peers (`expected`)."""

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("captum")  # a dev dependency
from captum import attr
from captum.attr._utils import lrp_rules
from expected import VALUES, Value


def by_captum(value: Value, net: nn.Module) -> Tensor | None:
    """captum's map; None where it has no such method. Its gamma and alpha-beta rules leave biases as they are; Eq. 14 and 15
    take them for weights of a neuron that is 1.
    """
    if value.method in value.alone:
        return None
    x, target, x0 = value.image.clone(), value.target, torch.tensor(value.x0, dtype=torch.float64).view(1, -1, 1, 1)
    method, _, layer = value.method.partition("@")
    biases = any(getattr(module, "bias", None) is not None and module.bias.any() for module in net.modules())
    if method in ("gradcam", "guided_gradcam"):
        at = net.get_submodule(layer)
        if method == "guided_gradcam":
            return attr.GuidedGradCam(net, at).attribute(x, target, interpolate_mode="bilinear")
        maps = attr.LayerGradCam(net, at).attribute(x, target, relu_attributions=True)
        return attr.LayerAttribution.interpolate(maps, x.shape[2:], "bilinear")
    if method == "saliency":
        return attr.Saliency(net).attribute(x, target, abs=False)
    if method == "ig":
        return attr.IntegratedGradients(net).attribute(x, x0.expand_as(x), target)
    if method.startswith("occlusion"):
        k = {"occlusion": 1, "occlusion_2x2": 2, "occlusion_4x4": 4}[method]
        return attr.Occlusion(net).attribute(x, (1, k, k), (1, k, k), x0.expand_as(x), target)
    if method in ("gbp", "deconvnet"):
        return {"gbp": attr.GuidedBackprop, "deconvnet": attr.Deconvolution}[method](net).attribute(x, target)
    if method == "rescale":
        return attr.DeepLift(net).attribute(x, x0.expand_as(x), target)
    rules = {
        "lrp_0": lambda: lrp_rules.EpsilonRule(0),
        "lrp_epsilon_7": lambda: lrp_rules.EpsilonRule(7),
        "lrp_epsilon_12": lambda: lrp_rules.EpsilonRule(12),
    }
    if not biases:
        rules |= {
            "lrp_gamma_1": lambda: lrp_rules.GammaRule(1),
            "lrp_gamma_1/4": lambda: lrp_rules.GammaRule(0.25),
            "lrp_alpha1_beta0": lrp_rules.Alpha1_Beta0_Rule,
        }
    if method not in rules:
        return None
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.rule = rules[method]()
    return attr.LRP(net).attribute(x, target)


@pytest.mark.filterwarnings("ignore:Setting", "ignore:Input Tensor")  # captum says that it hooks modules
@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value.name}: {value.method}")
def test_maps_are_those_that_follow_by_hand(value):
    scale = value.expected.abs().max() or 1
    assert (value.explained() - value.expected).abs().max() < 1e-9 * scale, value.source
    theirs = by_captum(value, value.build())
    if theirs is not None:  # some of its weights are float32
        assert (theirs - value.expected).abs().max() < 1e-6 * scale, f"captum: {value.source}"
