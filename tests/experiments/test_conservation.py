"""ayyar2021, Eqs. 11 to 25: the layer-by-layer sums against the project's LRP and DeepLIFT, and the verdicts."""

import pytest
import torch
from concluded import concluded

from experiments.ayyar2021 import conservation, equations
from vis.methods import LRP

x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64) - 0.5


@pytest.mark.parametrize("kind", conservation.KINDS)
@pytest.mark.parametrize(
    ("rule", "method"),
    [
        ("LRP-0", LRP("zero")),
        ("LRP-αβ, α = 2, β = 1", LRP("alpha_beta", alpha=2)),
        ("LRP-αβ, α = 1, β = 0", LRP("alpha_beta", alpha=1)),
        ("LRP-γ", LRP("gamma_eq14", gamma=0.25)),
    ],
)
def test_the_equations_as_printed_are_the_methods(kind, rule, method):
    net = equations.network(kind, 3)
    c, R = equations.score(net, x)
    if kind == equations.RESIDUAL and "αβ" in rule:
        return  # there, the method shares sums by alpha and beta, too
    found = equations.relevances(net, x, R, conservation.RULES[rule])[0][1]
    torch.testing.assert_close(found, method(net, x, [c]), rtol=1e-9, atol=1e-12)


def test_epsilon_is_in_parts_of_the_denominators_of_its_layer():
    net = torch.nn.Sequential(torch.nn.Linear(4, 3)).double().requires_grad_(False)
    a, R = torch.rand(1, 4, dtype=torch.float64), torch.rand(1, 3, dtype=torch.float64)
    z = net(a)
    absolute = 0.1 * z.square().mean().sqrt()
    expected = torch.einsum("i,ji,j->i", a[0], net[0].weight, (R / (z + absolute * z.sign()))[0])
    found = equations.shared(net[0], a, R, conservation.RULES["LRP-ε"])
    torch.testing.assert_close(found[0], expected)
    unsigned = equations.shared(net[0], a, R, conservation.RULES["LRP-ε"], signed=False)
    torch.testing.assert_close(unsigned[0], torch.einsum("i,ji,j->i", a[0], net[0].weight, (R / (z + absolute))[0]))


def test_what_the_equations_conserve():
    results, claims = concluded("experiment=ayyar2021/conservation", "preset=tiny")
    verdicts = {id_: claim["verdict"] for id_, claim in claims.items()}
    fails = {
        "A-5.1-a",
        "A-5.1-b",
        "A-5.1-c",
        "A-5.1-k",
    }  # biases and epsilon take relevance; LRP-0 is a gradient; a misprint
    assert {id_ for id_, verdict in verdicts.items() if verdict == "fails"} == fails
    exact = {"A-5.1-h", "A-5.1-i", "A-5.1-j", "A-5.2-a", "A-5.2-b", "A-5.2-c"}
    assert all(verdicts[id_] == "holds" for id_ in {*exact, "conserved_without_biases", "epsilon_root_mended"})
    assert all(row["sum"] == 1 for row in results.rows(rule="LRP-0", network="plain", biases=True, layer=11))
