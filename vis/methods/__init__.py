"""Methods: (model, images, targets) -> maps. A plain library, without Hydra and without figures.

from vis.methods import GuidedBackprop
maps = GuidedBackprop()(model, images, targets=281)      # [B, C, H, W], signed, unscaled
"""

from vis.methods.backprop import DeconvNet, GuidedBackprop, Saliency
from vis.methods.base import Method, explain_all
from vis.methods.cam import (
    CAM,
    AblationCAM,
    EigenCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    OptiCAM,
    ScoreCAM,
    XGradCAM,
)
from vis.methods.forward import DECONVNET, GUIDED, SALIENCY, Forward, NotApplicable, ReluRule
from vis.target import Target

__all__ = [
    "CAM",
    "DECONVNET",
    "GUIDED",
    "SALIENCY",
    "AblationCAM",
    "DeconvNet",
    "EigenCAM",
    "Forward",
    "GradCAM",
    "GradCAMPlusPlus",
    "GuidedBackprop",
    "HiResCAM",
    "LayerCAM",
    "Method",
    "NotApplicable",
    "OptiCAM",
    "ReluRule",
    "Saliency",
    "ScoreCAM",
    "Target",
    "XGradCAM",
    "explain_all",
]
