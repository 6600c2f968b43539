"""Certificates: what they hold, that they notice a wrong network, and that they say where there can be none."""

import json

import numpy as np
import pytest
from peers import peer

from brainseg_jax.config.resolve import from_resolved
from brainseg_jax.weights import checkpoint
from converters import certify, paper, unetr
from converters.convert import main
from converters.rules import to_ours
from converters.source import detect, read

torch = peer("torch")
UNETR = peer("monai.networks.nets:UNETR")
SwinUNETR = peer("monai.networks.nets:SwinUNETR")


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return UNETR(1, 3, (32, 32, 32), feature_size=8, hidden_size=48, mlp_dim=96).state_dict()


@pytest.mark.parity
@pytest.mark.slow
def test_a_certificate_of_a_unetr(tmp_path, weights, capsys):
    torch.save(weights, tmp_path / "w.pt")
    assert main([str(tmp_path / "w.pt"), str(tmp_path / "w"), "--certify"]) == 0
    assert "w.certificate.md: equal to MONAI 1.6" in capsys.readouterr().out
    found = json.loads((tmp_path / "w.certificate.json").read_text())
    assert found["passed"] and found["round_trip"] == {"tensors": 170, "bit_equal": True}
    assert (found["dialect"], found["file"], found["written_for_monai"]) == ("monai-unetr", "w.pt", "1.6")
    decoder = [
        f"decoder/{name}" for name in ("encoder1", "encoder2", "encoder3", "encoder4", "decoder5", "decoder4", "decoder3", "decoder2")
    ]
    assert sorted(found["blocks"]) == sorted(
        [*(f"encoder/blocks/{i}" for i in range(12)), "encoder/norm", *decoder, "head", "whole network"]
    )
    for block in found["blocks"].values():
        assert block["float32"]["relative"] < 1e-5 and block["float64"]["relative"] < 1e-10
    page = (tmp_path / "w.certificate.md").read_text()
    assert page.startswith("# w.pt: passed") and "| decoder/decoder2 |" in page
    # Files beside a checkpoint do not break its seal.
    assert checkpoint.verify(tmp_path / "w") == ""


@pytest.mark.parity
def test_a_wrong_network_fails(tmp_path, weights, monkeypatch):
    """One number of one bias, on our side only."""
    torch.save(weights, tmp_path / "w.pt")
    assert main([str(tmp_path / "w.pt"), str(tmp_path / "w")]) == 0
    tensors = read(tmp_path / "w.pt").tensors
    dialect = detect(tensors)
    leaves, _ = to_ours(dialect.rows, dialect.dead, tensors)
    config = from_resolved(checkpoint.load(tmp_path / "w")[1]["config"])
    facts = {"file": "w.pt", "sha256": "", "dialect": dialect.name, "merging": "", "monai": "", "adapted": []}
    monkeypatch.setattr(certify, "TOLERANCE", {"float32": 1e-5})
    ours = certify._ours
    bias = "head/bias"
    monkeypatch.setattr(certify, "_ours", lambda c, given, *rest: ours(c, given | {bias: given[bias] + np.float32(1e-3)}, *rest))
    certificate = certify.certify(config, leaves, {key: tensors[key] for key in ("vit.norm.bias",)}, dialect, facts)
    assert not certificate["passed"] and certificate["round_trip"]["bit_equal"]
    assert certificate["blocks"]["head"]["float32"]["relative"] > 1e-5 > certificate["blocks"]["decoder/decoder2"]["float32"]["relative"]
    assert "FAILED" in certify.markdown(certificate)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(("merging", "encoder_only"), [("legacy", False), ("mergingv2", False), ("legacy", True)])
def test_certificates_of_swins(tmp_path, merging, encoder_only):
    torch.manual_seed(0)
    state = SwinUNETR(1, 3, feature_size=12).state_dict()
    torch.save({key: value for key, value in state.items() if not encoder_only or "swinViT" in key}, tmp_path / "w.pt")
    assert main([str(tmp_path / "w.pt"), str(tmp_path / "w"), "--merge", merging, "--certify"]) == 0
    found = json.loads((tmp_path / "w.certificate.json").read_text())
    assert found["passed"] and found["merging"] == merging
    assert ("decoder/encoder10" in found["blocks"]) == (not encoder_only)
    assert "encoder/layers4/blocks_1" in found["blocks"]


@pytest.mark.parity
def test_there_is_none_for_what_monai_does_not_have(tmp_path, weights, capsys):
    torch.save({key: value for key, value in weights.items() if "decoder3" not in key}, tmp_path / "part.pt")
    assert main([str(tmp_path / "part.pt"), str(tmp_path / "part"), "--partial", "--certify"]) == 2
    assert "compares whole networks" in capsys.readouterr().err
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("package", ["torch", "monai", "einops"])
def test_it_needs_monai(monkeypatch, package):
    def version(name):
        if name == package:
            raise certify.importlib.metadata.PackageNotFoundError(name)
        return "1.6"

    monkeypatch.setattr(certify.importlib.metadata, "version", version)
    with pytest.raises(certify.InputError, match=f"{package} is not installed; pip install"):
        certify.check(unetr.UNETR, [])
    with pytest.raises(certify.InputError, match="MONAI has none for paper-unetr"):
        certify.check(paper.UNETR, [])
