"""Run the base image through a traced network and keep what the passes of its windows need."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vis.graph.trace import NotTraceable
from vis.windows.plan import Network


class BasePass:
    """A forward pass of the base image [1, C, H, W], with batch norms folded into convolutions.

    maps: {node with a rule: its map as rows [H W, C]}
    constants: {node that does not depend on the image: its value}
    dense: {dense layer: (input, output)}, kept only for low precision
    logits: [1, K]
    scale: the largest logit if no products cancelled (0 without a dense layer)

    Raises NotTraceable for in-place operations whose effect the graph does not show.
    """

    def __init__(self, network: Network, image: Tensor, keep_dense: bool) -> None:
        self.network: Any = network
        self._interpreter = fx.Interpreter(network.traced.runnable, graph=network.traced.graph)
        self.maps: dict[fx.Node, Tensor] = {}
        self.constants: dict[fx.Node, Any] = {}
        self.dense: dict[fx.Node, tuple[Tensor, Tensor]] = {}
        self._folded = {conv: self._fold(norm, conv) for norm, conv in network.folded.items()}
        env: dict[fx.Node, Any] = {}
        versions: dict[fx.Node, int] = {}  # of values that are read later
        for node in network.nodes:
            if node is network.image:
                env[node] = image.clone()
            elif node.op == "placeholder":
                env[node] = node.args[0] if node.args else None
            else:
                env[node] = self.run(node, env)
            if keep_dense and network.is_dense(node):
                self.dense[node] = env[node.args[0]].clone(), env[node].clone()
            self._follow_changes(node, env, versions)
            if node not in network.dependent:
                self.constants[node] = env[node]
            elif node in network.rules:
                self.maps[node] = env[node][0].movedim(0, -1).flatten(0, 1).clone()
        self.logits: Tensor = env[network.nodes[-1]]
        self.scale = self._scale(env)

    def run(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        """Run a node on the values of its inputs, as the network does; a folded batch norm returns its input."""
        network = self.network
        if node in network.folded:
            return env[network.folded[node]]
        if node in self._folded:
            source, (weight, bias), conv = env[network.sources(node)[0]], self._folded[node], network.module(node)
            return F.conv2d(source, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        args, kwargs = (fx.node.map_arg(given, env.__getitem__) for given in (node.args, node.kwargs))
        target = "reshape" if node.target == "view" else node.target  # maps here may be in channels_last
        return getattr(self._interpreter, node.op)(target, args, kwargs)

    def parameters(self, node: fx.Node, env: dict[fx.Node, Any]) -> tuple[Any, ...]:
        """Return weight, bias and groups of a convolution or dense layer."""
        network = self.network
        weight, bias = self._folded.get(node) or (network.option(node, n, i) for i, n in ((1, "weight"), (2, "bias")))
        weight, bias = (env[each] if isinstance(each, fx.Node) else each for each in (weight, bias))
        return weight, bias, network.option(node, "groups", 6, 1)

    def _fold(self, norm: fx.Node, conv: fx.Node) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a convolution with the batch norm behind it."""
        m, bn = self.network.module(conv), self.network.module(norm)
        weight, bias = fuse_conv_bn_weights(
            m.weight, m.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        return weight.detach(), bias.detach()

    def _follow_changes(self, node: fx.Node, env: dict[fx.Node, Any], versions: dict[fx.Node, int]) -> None:
        """If a node has changed values in place that are read later, let later nodes read the node itself."""
        network = self.network
        for source in network.sources(node):
            if network.last_use[source] is node:
                versions.pop(source, None)
        changed = [each for each, version in versions.items() if env[each]._version != version]
        if changed:
            self._rename(changed, node, env)
        for each in changed:
            del versions[each]
        versions.update({each: env[each]._version for each in versions})
        if node in network.dependent and node in network.last_use and isinstance(env[node], Tensor):
            versions[node] = env[node]._version

    def _rename(self, changed: list[fx.Node], node: fx.Node, env: dict[fx.Node, Any]) -> None:
        """Replace changed nodes by the one that changed them, if all are names of the same map; else raise NotTraceable."""
        network = self.network
        if node not in network.rules and not any(each in network.rules for each in changed):
            return  # whole maps share memory here as in the network

        def place(of: fx.Node) -> tuple[Any, ...]:
            return env[of].data_ptr(), env[of].shape, env[of].stride()

        if node not in network.rules or any(place(each) != place(node) for each in changed):
            names = ", ".join(map(network.traced.words, changed))
            raise NotTraceable(f"{network.traced.words(node)} changes {names} in place")
        network.rename(changed, node)

    def _scale(self, env: dict[fx.Node, Any]) -> Tensor:
        """Return the scale of the last dense layer; values after it, like a difference of two logits, may be small by chance."""
        dense = [each for each in self.network.nodes if self.network.is_dense(each)]
        if not dense:
            return self.logits.new_zeros(())
        weight, bias = self.parameters(dense[-1], env)[:2]
        x = env[dense[-1].args[0]]
        squares = F.linear(x.square(), weight.square(), None if bias is None else bias.square())
        return squares.sqrt().max()
