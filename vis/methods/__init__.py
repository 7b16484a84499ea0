"""Methods: (model, images, targets) -> maps. A plain library, without Hydra and without figures.

from vis.methods import GuidedBackprop
maps = GuidedBackprop()(model, images, targets=281)      # [B, C, H, W], signed, unscaled
"""

from vis.graph.outputs import returning
from vis.methods.backprop import DeconvNet, GuidedBackprop, InputXGradient, RectGrad, Saliency
from vis.methods.base import Method, explain_all
from vis.methods.cam import (
    CAM,
    AblationCAM,
    ActivationMap,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    OptiCAM,
    ScoreCAM,
    XGradCAM,
)
from vis.methods.deeplift import DeepLIFT
from vis.methods.fem import FEM
from vis.methods.forward import DECONVNET, GUIDED, SALIENCY, Forward, NotApplicable, ReluRule
from vis.methods.fullgrad import FullGrad
from vis.methods.generators import AdversarialGenerators
from vis.methods.gradients import ExpectedGradients, GradCAMGradient, GuidedGradCAM, IntegratedGradients, SmoothGrad
from vis.methods.guided_ig import GuidedIG
from vis.methods.meaningful_perturbation import MeaningfulPerturbation
from vis.methods.perturbation import PDA, Occlusion, PDAFast, PDAGradient
from vis.methods.relevance import LRP, DeepTaylor
from vis.methods.rise import RISE
from vis.methods.superpixels import LIME, KernelSHAP
from vis.methods.target import Target

__all__ = [
    "CAM",
    "DECONVNET",
    "FEM",
    "GUIDED",
    "LIME",
    "LRP",
    "PDA",
    "RISE",
    "SALIENCY",
    "AblationCAM",
    "ActivationMap",
    "AdversarialGenerators",
    "DeconvNet",
    "DeepLIFT",
    "DeepTaylor",
    "EigenCAM",
    "EigenGradCAM",
    "ExpectedGradients",
    "Forward",
    "FullGrad",
    "GradCAM",
    "GradCAMGradient",
    "GradCAMPlusPlus",
    "GuidedBackprop",
    "GuidedGradCAM",
    "GuidedIG",
    "HiResCAM",
    "InputXGradient",
    "IntegratedGradients",
    "KernelSHAP",
    "LayerCAM",
    "MeaningfulPerturbation",
    "Method",
    "NotApplicable",
    "Occlusion",
    "OptiCAM",
    "PDAFast",
    "PDAGradient",
    "RectGrad",
    "ReluRule",
    "Saliency",
    "ScoreCAM",
    "SmoothGrad",
    "Target",
    "XGradCAM",
    "explain_all",
    "returning",
]
