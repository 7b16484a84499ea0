"""Describe a run's folder as a Process Run Crate (RO-Crate 1.1), for archives and catalogues that read such metadata."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vis.config.check import leaves
from vis.store.run_folder import RunFolder, title, verdicts
from vis.store.stored import Stored, stored
from vis.system.files import write_json

_NAME = "ro-crate-metadata.json"
_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
_FORMATS = {
    ".png": "image/png", ".pdf": "application/pdf", ".csv": "text/csv", ".md": "text/markdown", ".yaml": "application/yaml",
    ".json": "application/json", ".npz": "application/zip", ".pt": "application/zip", ".diff": "text/x-diff",
}  # fmt: skip
_NOT_RESULTS = ("config.yaml", "provenance.json", "status.json", "git.diff")
_SETTINGS = ("target", "seed", "seeds", "preset", "precision", "device", "batch_size")

Node = dict[str, Any]


def crate(folder: Path) -> Path:
    """Write ro-crate-metadata.json into the folder of a finished run, and return its path.

    The run is a CreateAction: its instrument is this project, its objects are the config, the data and the weights, its
    results the figures, tables, arrays and claims. The authors of the run decide on its licence, so none is stated.
    """
    found, config = stored(folder), RunFolder(folder).config()
    paths = [path for path in sorted(folder.iterdir()) if path.suffix in _FORMATS and path.name != _NAME]
    files = [_file(path, found) for path in paths]
    results = [node for node in files if node["@id"] not in _NOT_RESULTS]
    facts = found.provenance.entries
    ended = found.provenance.finished
    version = facts.get("version", "unknown")
    tool = _software("#vis-run", "vis-run", version)
    if facts.get("git_commit"):
        tool["description"] = f"git commit {facts['git_commit']}" + ", with git.diff" * bool(facts.get("git_diff"))
    packages = [
        _software("https://www.python.org/", "Python", facts.get("python", "unknown")),
        *(
            _software(f"https://pypi.org/project/{name}/{number}/", name, number)
            for name, number in facts.get("packages", {}).items()
        ),
    ]
    tool["softwareRequirements"] = list(map(_ref, packages))
    inputs = _inputs(facts)
    settings = [
        {"@id": f"#setting-{key}", "@type": "PropertyValue", "name": key, "value": str(value)}
        for key, value in leaves(config)
        if key in _SETTINGS
    ]
    action: Node = {
        "@id": "#run", "@type": "CreateAction", "name": title(config), "description": facts.get("command") or title(config),
        "instrument": _ref(tool), "object": [{"@id": "config.yaml"}, *map(_ref, [*inputs, *settings])],
        "result": list(map(_ref, results)), "actionStatus": "http://schema.org/CompletedActionStatus",
    }  # fmt: skip
    root: Node = {
        "@id": "./", "@type": "Dataset", "name": f"Run of {title(config)}", "conformsTo": {"@id": _PROFILE},
        "description": ". ".join(filter(None, (f"Claims: {verdicts(found.claims)}", config.get("note")))),
        "keywords": ", ".join(["visual explanation", "reproducibility", *(config.get("tags") or [])]),
        "license": {"@id": "#licence"}, "hasPart": list(map(_ref, files)), "mentions": {"@id": "#run"},
    }  # fmt: skip
    if ended:
        root["datePublished"] = action["endTime"] = ended.isoformat()
        if began := found.status.started or _before(ended, found.status.seconds):
            action["startTime"] = began
    graph: list[Node] = [
        {"@id": _NAME, "@type": "CreativeWork", "about": {"@id": "./"},
         "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"}},
        root,
        {"@id": _PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {"@id": "#licence", "@type": "CreativeWork", "name": "No licence is stated",
         "description": "The authors of this run decide how it may be used"},
        action, tool, *packages, *inputs, *settings, *files,
    ]  # fmt: skip
    write_json(folder / _NAME, {"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": graph})
    return folder / _NAME


def _software(id_: str, name: str, number: str) -> Node:
    url = {"url": id_} if "://" in id_ else {}
    return {"@id": id_, "@type": "SoftwareApplication", "name": name, "softwareVersion": number} | url


def _inputs(facts: dict[str, Any]) -> list[Node]:
    """Return the weights and the data that a run used, each with its checksum."""
    weights = [
        {"@id": f"#weights-{number}", "@type": "CreativeWork", "name": f"{name}: {model.get('weights')}",
         **({"identifier": f"sha256:{model['sha256']}"} if model.get("sha256") else {})}
        for number, (name, model) in enumerate(facts.get("models", {}).items())
    ]  # fmt: skip
    data = [
        {"@id": f"#data-{number}", "@type": "CreativeWork", "name": f"{each['origin']}, {each['images']} images",
         "identifier": f"sha256:{each['fingerprint']}"}
        for number, each in enumerate(facts.get("datasets", []))
    ]  # fmt: skip
    return [*weights, *data]


def _before(ended: datetime, seconds: float | None) -> str | None:
    """Return when a run began that took some seconds; of runs whose status.json does not say it."""
    return None if seconds is None else (ended - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def _file(path: Path, found: Stored) -> Node:
    node = {"@id": quote(path.name), "@type": "File", "name": path.name, "encodingFormat": _FORMATS[path.suffix]}
    caption = found.figures.get(path.stem) if path.suffix in (".png", ".pdf") else None
    return node | {"contentSize": str(path.stat().st_size)} | ({"description": caption} if caption else {})


def _ref(node: Node) -> Node:
    return {"@id": node["@id"]}
