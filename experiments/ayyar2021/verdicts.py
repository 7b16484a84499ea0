"""What the claims of ayyar2021 share: paired differences of two methods, and a run's deviations from the survey's setting."""

from collections.abc import Sequence
from dataclasses import replace

from vis.claims import Claim, Column, Compared, Rule, above, on_digits
from vis.models.published import is_published
from vis.store.run_folder import Results

POSITIVE = above(0)
IMAGES = 20  # the fewest images for a verdict on a trained network
BOXES = 8  # ... with boxes drawn around the objects


def lead(
    results: Results, name: str, more: str, less: str, *, metric: str, rule: Rule = POSITIVE, table: str = "table"
) -> Compared:
    """Compare the column `name` of one method with that of another, image by image: `more` - `less`."""
    first, second = (Column(results.rows(table, method=method), name, "image") for method in (more, less))
    return Compared(f"{metric}, {more} - {less}", first - second, rule, null=0.0, control="no difference: 0")


def other_weights(results: Results, weights: str) -> list[str]:
    """Return the difference of a run whose weights, given in words, are not the published ones: one sentence, or none."""
    model = results.config.model
    if is_published(model):
        return []
    paper = "a network that photographs trained" if "stand-in" in weights else "published weights"
    return [f"{model.get('arch', model.name)}, {weights}, instead of {paper}"]


def on_trained(
    results: Results, claims: Sequence[Claim], network: str = "", data: str = "", least: int = IMAGES
) -> list[Claim]:
    """Add to claims on a trained network what differs from the survey's setting, or why there is no verdict.

    network, data: those that the survey names, "" if it names none. The run's table says where the weights come from. least:
    the fewest images for a verdict. Claims that are exact in each value have a verdict on any network.
    """
    model, weights = results.config.model, str(results.rows()[0]["weights"])
    arch = str(model.get("arch", model.name))
    differences = [f"{arch} instead of {network}"] if network and arch != network else []
    differences += other_weights(results, weights)
    if data:
        differences.append(f"other images than {data}")
    reason = on_digits(results.config)
    if weights.startswith("random"):
        reason = "the sentence speaks of a trained network and the weights are random: give model.weights=FILE"
    found = []
    for claim in claims:
        exact = all(each.rule.of == "each" for each in claim.compared)
        compared = [replace(c, rule=replace(c.rule, least=max(least, c.rule.least))) for c in claim.compared]
        other = [] if claim.kind == "finding" else [*claim.differences, *differences]
        found.append(
            replace(claim, compared=compared, differences=other, reason=claim.reason or ("" if exact else reason))
        )
    return found
