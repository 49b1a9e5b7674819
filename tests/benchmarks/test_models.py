import hashlib
from importlib.metadata import PackagePath
from pathlib import Path

import pytest

from benchmarks import models
from benchmarks.models import ModelNotFoundError, minilm_folder

WEIGHTS = b"not really weights"


class FakeFile(PackagePath):
    root: Path

    def locate(self) -> Path:
        return self.root / self


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the right name and version with weights of a known digest."""
    FakeFile.root = tmp_path
    weights = tmp_path / "gt" / "model" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(WEIGHTS)
    monkeypatch.setattr(models, "version", lambda name: "0.1.0")
    monkeypatch.setattr(
        models, "files", lambda name: [FakeFile("gt/__init__.py"), FakeFile("gt/model/model.safetensors")]
    )
    monkeypatch.setattr(models, "_WEIGHTS_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    return weights


def test_the_folder_of_the_known_weights_is_found(installed: Path) -> None:
    assert minilm_folder() == installed.parent


def test_other_weights_are_refused(installed: Path) -> None:
    installed.write_bytes(WEIGHTS + b"!")
    with pytest.raises(ModelNotFoundError, match=r"expected SHA-256 \w{64}, got"):
        minilm_folder()


def test_another_version_is_refused(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "version", lambda name: "0.2.0")
    with pytest.raises(ModelNotFoundError, match=r"0\.1\.0, found 0\.2\.0"):
        minilm_folder()


def test_a_missing_package_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_DISTRIBUTION", "no-such-distribution")
    with pytest.raises(ModelNotFoundError, match=r"pip install no-such-distribution==.*--model"):
        minilm_folder()
