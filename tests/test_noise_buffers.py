"""Noise images that an inversion finds with the latents: the published penalty, and a head that is read back to the bit."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import projector
from dnnlib import UserError
from inference.heads import load_head
from inference.inversion import invert
from inference.inversion_files import save_inversion
from inference.inversion_options import recipe_options
from inference.inversion_run import Journal
from inference.noise_buffers import freed, noise_buffers, noise_penalty, standardise
from inference.perceptual import StructuralFeatures
from inference.session import Session
from torch_utils.misc import weights_digest
from training.snapshot import save_snapshot
from inversion_cases import RECORD, Interruption, network, own_target, write_files

OPTIONS = recipe_options('panohead', steps_w=6, steps_g=3, num_statistics=100, optimize_noise=True)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """small.pkl has noise that counts."""
    folder = write_files(tmp_path_factory.mktemp('noise'))
    generator = network(folder)
    for name, parameter in generator.named_parameters():
        if name.endswith('noise_strength'):
            parameter.data.fill_(0.3)
    save_snapshot(folder / 'small.pkl', {'G_ema': generator}, {})
    return folder


def found(files, options=OPTIONS, journal=None):
    """(generator, Inversion) of its own picture."""
    generator = network(files)
    target = own_target(generator)
    return generator, invert(generator, target, StructuralFeatures(), options, journal=journal)


def level_penalty(image):
    """By the definition, pixel by pixel."""
    size = len(image)
    products = [[image[y][x] * image[y - 1][x] for y in range(size) for x in range(size)],
                [image[y][x] * image[y][x - 1] for y in range(size) for x in range(size)]]
    return sum((sum(p) / size ** 2) ** 2 for p in products)


def halved(image):
    return [[sum(image[2 * y + i][2 * x + j] for i in (0, 1) for j in (0, 1)) / 4 for x in range(len(image) // 2)]
            for y in range(len(image) // 2)]


def test_penalty_is_the_published_sum():
    """Over every image and its halves down to 8x8; images that are smaller count once."""
    images = [torch.randn(size, size, generator=torch.Generator().manual_seed(size)) + 0.5 for size in (4, 8, 32)]
    small, middle, large = (image.double().tolist() for image in images)
    half = halved(large)
    expected = sum(map(level_penalty, (small, middle, large, half, halved(half))))
    assert noise_penalty(images).item() == pytest.approx(expected, rel=1e-4)
    stripes = torch.ones(16, 16)
    stripes[::2] = -1
    assert noise_penalty([stripes]).item() == pytest.approx(2)      # 1 along either axis; nothing is left of its half


def test_images_are_standardised_after_every_step(files, monkeypatch):
    images = [torch.randn(8, 8) * 3 + 1]
    standardise(images)
    assert images[0].mean().item() == pytest.approx(0, abs=1e-6) and images[0].square().mean().item() == pytest.approx(1)
    moments = []
    monkeypatch.setattr('inference.noise_buffers.noise_penalty', lambda images: moments.append(
        [(image.mean().item(), image.square().mean().item()) for image in images]) or noise_penalty(images))
    generator, result = found(files)
    ends = [(image.mean().item(), image.square().mean().item()) for image in noise_buffers(generator).values()]
    assert len(moments) == OPTIONS.steps_w
    torch.testing.assert_close(torch.tensor([*moments[1:], ends]), torch.tensor([0.0, 1.0]).expand(6, len(ends), 2), atol=1e-3, rtol=0)
    assert max(abs(mean) for mean, _ in moments[0]) > 0.01          # normal numbers as they were drawn


def test_noise_of_the_pictures_layers_is_moved(files):
    generator, result = found(files, dataclasses.replace(OPTIONS, steps_g=0))
    before = network(files)
    names = set(noise_buffers(before))
    assert names == set(result.deltas) and {name.split('.')[0] for name in names} == {'backbone', 'bcg_synthesis'}
    for (name, old), new in zip(before.named_buffers(), generator.buffers(), strict=True):
        assert torch.equal(old, new) == (name not in names) and not new.requires_grad
    with freed(before, OPTIONS.seed) as noise:                       # pictures move it, not the penalty alone
        image = before.synthesis(result.ws, result.label).image
        assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(image.square().sum(), noise.images))


def test_same_seed_same_noise_and_interrupted_runs_end_alike(files, tmp_path):
    generator, result = found(files)
    expected = [result.ws, result.pre, result.post, *generator.state_dict().values(), *result.deltas.values()]
    for after in (None, 3, 8):
        journal = Journal() if after is None else Interruption(tmp_path / f'state{after}', 'a', after)
        if after is not None:
            with pytest.raises(KeyboardInterrupt):
                found(files, journal=journal)
            journal = Journal(journal.path, 'a')
            assert journal.resumed
        generator, result = found(files, journal=journal)
        again = [result.ws, result.pre, result.post, *generator.state_dict().values(), *result.deltas.values()]
        assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    other, _ = found(files, dataclasses.replace(OPTIONS, seed=1))
    assert not any(torch.equal(a, b) for a, b in zip(noise_buffers(other).values(), noise_buffers(generator).values()))


def test_saved_head_renders_bit_equal(files, tmp_path):
    generator, result = found(files)
    save_inversion(tmp_path, generator, result, RECORD | {'network_digest': weights_digest(network(files))})
    head, session = load_head(tmp_path / 'head.safetensors'), Session.open(str(files / 'small.pkl'), 'cpu')
    ws = session.given_ws(head)
    assert torch.equal(session.view(session.identity(ws), head.labels).image, result.post)
    loaded = Session.open(str(tmp_path / 'fintuned_generator.pkl'), 'cpu', precision='float32')
    assert torch.equal(loaded.view(loaded.identity(result.ws), result.label).image, result.post)


def test_projector_takes_it_with_the_published_recipes(files, tmp_path):
    def run(flags):
        return CliRunner().invoke(projector.main, f'{command} {flags} --outdir {tmp_path}'.split())

    command = f'--network {files}/small.pkl --target_img {files}/crops --num-steps 2 --num-steps-pti 1 --orbit-frames 0 --device cpu'
    assert run('--recipe pso --optimize-noise').exit_code == 0
    folder = tmp_path / 'small' / '0'
    assert json.loads((folder / 'settings.json').read_text())['settings']['optimize_noise'] is True
    assert any(name.endswith('noise_const') for name in load_head(folder / 'head.safetensors').deltas)
    refused = run('--recipe omni --optimize-noise')
    assert refused.exit_code == 2 and '--optimize-noise: goes with' in refused.output and 'panohead' in refused.output
    assert np.isfinite(np.load(folder / 'projected_w.npz')['w']).all()


def test_networks_without_noise_are_told():
    with pytest.raises(UserError, match='--optimize-noise'), freed(torch.nn.Linear(1, 1), 0):
        pass
