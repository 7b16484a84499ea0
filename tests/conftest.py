"""What all tests share."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SMALL = ("model=cnn3_random", "model.num_filters=4", "model.num_classes=10", "model.input_size=32")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail at once and for the same reason everywhere."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture(autouse=True)
def _one_thread_for_tiny_networks(request: pytest.FixtureRequest) -> Iterator[None]:
    """More threads only get into each other's way, but in large networks."""
    torch = sys.modules.get("torch")
    if torch is None or request.node.get_closest_marker("slow"):
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shared(pytestconfig: pytest.Config) -> Path:
    """Development material that is no part of the project: data/, weights/, papers/."""
    folder = os.environ.get("VIS_TEST_SHARED")
    if not folder:
        pytest.skip("VIS_TEST_SHARED is not set")
    return (pytestconfig.rootpath / folder).resolve()


@pytest.fixture
def data(shared: Path) -> Path:
    return shared / "data"


@pytest.fixture
def weights(shared: Path) -> Path:
    return shared / "weights"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and its address on a server of this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`vis-run` as a user runs it: a process of its own, standing in an empty folder."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300} | options
        return subprocess.run([sys.executable, "-m", "vis.run", *arguments], check=False, **options)  # type: ignore[call-overload]  # any option

    return run


@pytest.fixture
def vis_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., "Ran"]:
    """`vis-run` in this process (torch is imported once for all tests), standing in an empty folder."""
    from vis.run import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ran:
        code = main(list(arguments))
        output = capsys.readouterr()
        return Ran(code, output.out, output.err)

    return run


class Ran:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def folder(self) -> Path:
        """The folder of the result."""
        assert self.code == 0, self.err
        return Path(self.out.strip())
