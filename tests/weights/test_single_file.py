"""A network in one file: the same numbers and card come back, damage is noticed, and checkpoints and such files are used alike."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax import load
from brainseg_jax.core.errors import InputError
from brainseg_jax.core.pytree import paths
from brainseg_jax.pretrained import DEFAULT
from brainseg_jax.weights import checkpoint, safetensors, single_file
from converters.convert import main as convert

SWIN = {"data.crop": (32, 32, 32), "swin.width": 12, "swin.window": 4}
CARD = {"config": {"seed": 3}, "subjects": ["a"], "cohort": {"four": {"Cortex": [1.0, 0.5, 30]}}}


@pytest.fixture
def params(rng):
    return {"encoder": {"a": {"kernel": rng.normal(size=(3, 4)).astype(np.float32)}}, "head": {"bias": np.arange(5, dtype=np.float32)}}


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_there_and_back(tmp_path, params):
    single_file.write(tmp_path / "a.safetensors", params, CARD)
    found, card = single_file.read(tmp_path / "a.safetensors")
    equal(found, params)
    assert card == CARD


def test_half_the_size_comes_back_in_single_precision(tmp_path, params):
    single_file.write(tmp_path / "a.safetensors", params, CARD, np.float16)
    equal(single_file.read(tmp_path / "a.safetensors")[0], jax.tree.map(lambda a: a.astype(np.float16).astype(np.float32), params))


def test_checkpoint_reads_it_and_parts_of_it(tmp_path, params):
    file = tmp_path / "a.safetensors"
    single_file.write(file, params, CARD)
    encoder, card = checkpoint.load(file, "params/encoder")
    equal(encoder, params["encoder"])
    assert card == checkpoint.card(file) == CARD
    with pytest.raises(InputError, match=r"has no params/decoder; it has encoder, head"):
        checkpoint.load(file, "params/decoder")


def test_a_flipped_bit_is_noticed(tmp_path, params):
    file = tmp_path / "a.safetensors"
    single_file.write(file, params, CARD)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="its numbers or its card are not those that were written"):
        checkpoint.load(file)


def test_a_flipped_bit_of_the_header_never_gives_another_network(tmp_path, params, rng):
    """Names, types, shapes, the card and the seal itself: what is accepted is what was written."""
    file = tmp_path / "a.safetensors"
    single_file.write(file, params, CARD)
    sound, expected = np.frombuffer(file.read_bytes(), np.uint8), single_file.read(file)
    header, refused = 8 + int.from_bytes(sound[:8].tobytes(), "little"), 0
    for _ in range(400):
        damaged = sound.copy()
        damaged[rng.integers(header)] ^= 1 << rng.integers(8)
        file.write_bytes(damaged.tobytes())
        try:
            found, card = single_file.read(file)
        except InputError as refusal:
            refused += 1
            assert str(refusal).startswith(f"{file}: ") and "\n" not in str(refusal)
            continue
        equal(found, expected[0])
        assert card == expected[1]
    assert refused > 390


def old_kind(file, params, card):
    """As it was written before there was a seal."""
    arrays = paths(params)
    safetensors.write(file, arrays, {single_file.CARD: json.dumps(card), single_file.CHECKSUM: single_file._checksum(arrays)})


def test_files_from_before_the_seal_are_read_and_their_numbers_checked(tmp_path, params):
    file = tmp_path / "a.safetensors"
    old_kind(file, params, CARD)
    found, card = single_file.read(file)
    equal(found, params)
    assert card == CARD
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(InputError, match="are not those that were written; copy or download it again"):
        single_file.read(file)


CARDS = [
    {},
    {"config": []},
    {"config": {"seed": 3}},
    {"config": {"seed": {}}},
    {"config": {"seed": {"value": "three"}}},
    {"config": {"encoder": {"value": "vid"}, "objective": {"value": "segmentation"}}},
    {"config": {"vit.patch": {"value": 0}, "objective": {"value": "segmentation"}}},
]


@pytest.mark.parametrize("card", CARDS, ids=json.dumps)
def test_a_card_that_describes_no_network_is_one_line(tmp_path, params, card):
    """Damage of a file from before the seal, or a hand's: with the file's name."""
    file = tmp_path / "a.safetensors"
    old_kind(file, params, card)
    with pytest.raises(InputError) as refusal:
        load(file)
    assert str(refusal.value).startswith(f"{file}: ") and "\n" not in str(refusal.value)


def test_the_package_s_own_files_are_sealed():
    for file in DEFAULT.parent.glob("*.safetensors"):
        assert single_file.SEAL in safetensors.read(file)[1], file
        single_file.read(file)


def test_another_program_s_file_is_sent_to_the_converter(tmp_path):
    file = tmp_path / "a.safetensors"
    safetensors.write(file, {"a": np.zeros(3, np.float32)}, {"format": "pt"})
    assert not single_file.is_network(file)
    with pytest.raises(InputError, match=r"holds another program.s weights; .*brainseg convert"):
        checkpoint.card(file)
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none.safetensors")


@pytest.mark.slow
def test_a_network_travels_as_one_file(small, tmp_path, rng, capsys):
    """Saved as a folder and as a file it is the same network, and both become the same file of MONAI's keys."""
    from brainseg_jax.config.resolve import with_sources
    from brainseg_jax.inference.network import Network
    from brainseg_jax.models import encoders

    config = small(objective="segmentation", encoder="swin", decoder="swin_unetr", classes=3, **SWIN)
    image = jnp.asarray(rng.uniform(size=(1, *config.data.crop, 1)), jnp.float32)
    params = encoders.segmenter(config).init(jax.random.key(0), image)["params"]
    network = Network(config, params, {"config": with_sources(config, set(), "test.py")})
    network.save(tmp_path / "folder")
    network.save(tmp_path / "file.safetensors")
    folder, file = load(tmp_path / "folder"), load(tmp_path / "file.safetensors")
    equal(jax.device_get(folder.params), jax.device_get(file.params))
    np.testing.assert_array_equal(file.logits(image), network.logits(image))
    with pytest.raises(InputError, match="exists; give a new name"):
        network.save(tmp_path / "file.safetensors")
    for source in ("folder", "file.safetensors"):
        assert convert([str(tmp_path / source), str(tmp_path / f"monai_{source}.safetensors"), "--monai", "1.5"]) == 0, capsys.readouterr()
    one, other = (safetensors.read(tmp_path / f"monai_{name}.safetensors")[0] for name in ("folder", "file.safetensors"))
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
