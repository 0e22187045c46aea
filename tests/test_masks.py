"""Masks: the built-in segmentation against published and exact masks, and what users plug in."""

import sys
import types

import numpy as np
import PIL.Image
import pytest
import torch

from dnnlib import UserError
from photo_samples import FOLDER, needs_samples, picture, tools
from preprocessing import prepare_photo, segmentation
from preprocessing.masks import find_matting
from preprocessing.segmentation import segment_head
from training.synthetic.cameras import label_at
from training.synthetic.heads import sample_identities
from training.synthetic.render import render_heads


def overlap(a, b):
    """Intersection over union of two masks uint8."""
    return ((a > 127) & (b > 127)).sum() / ((a > 127) | (b > 127)).sum()


@needs_samples
@pytest.mark.parametrize('name', ['000134', '000157'])
def test_published_masks(name):
    image = picture(f'panohead_sample/testdata_img/{name}.jpg')
    wanted = np.array(PIL.Image.open(FOLDER / f'panohead_sample/testdata_seg/{name}.png'))
    head, = prepare_photo(image, tools=tools(), matting='none')
    assert overlap(segment_head(image, head.landmarks), wanted) > 0.96
    blind = segment_head(image)
    assert overlap(blind, wanted) > 0.9
    assert 0.02 < np.mean((blind > 5) & (blind < 250)) < 0.15      # soft edges, and only there


def test_synthetic_heads_of_all_sides():
    """Without a face to go by: whole pictures of heads before plain and mottled backgrounds. A guess, which for one of these
    twelve finds little but the hair."""
    labels = label_at(torch.linspace(-180, 150, 12), 0.0)
    labels[:, [16, 20]] *= 0.6
    batch = render_heads(sample_identities(range(100, 112)), labels, 128, 1)
    images = ((batch.image + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    found = [overlap(segment_head(image), (mask * 255).astype(np.uint8)) for image, mask in zip(images, batch.mask[:, 0].numpy())]
    assert np.median(found) > 0.7 and np.mean(np.array(found) > 0.6) > 0.9 and np.mean(np.array(found) > 0.99) > 0.25


def test_it_is_the_same_every_time():
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3)).astype(np.uint8)
    assert np.array_equal(segment_head(image), segment_head(image.copy()))


@pytest.mark.parametrize('shape', [(16, 16), (300, 16), (20, 400)])
def test_small_flat_and_odd_pictures(shape):
    for value in (0, 255):
        mask = segment_head(np.full((*shape, 3), value, np.uint8))
        assert mask.shape == shape and mask.dtype == np.uint8
    landmarks = np.random.default_rng(0).uniform(-50, 450, (68, 2))
    assert segment_head(np.full((*shape, 3), 90, np.uint8), landmarks).shape == shape


def test_cut_is_minimal():
    """A chain of five: the cut goes through its weakest link."""
    odds = np.array([100, 1, 0, -1, -100])
    edges = np.array([[0, 1, 2, 3], [1, 2, 3, 4]])
    for weak in range(4):
        capacity = np.full(4, 50)
        capacity[weak] = 7
        assert segmentation.minimum_cut(odds, edges, capacity).tolist() == [k <= weak for k in range(5)]


def test_mixture_finds_two_clusters():
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(0, 3, (200, 3)), rng.normal(40, 3, (100, 3))])
    mixture = segmentation.Mixture(vectors, components=2, rounds=15)
    assert sorted(np.round(np.exp(mixture.log_weight), 2)) == [0.33, 0.67]
    near, between = mixture.log_likelihood(np.array([[0.0] * 3, [20.0] * 3]))
    assert near > between + 10


@needs_samples
def test_plugged_in_mattings(tmp_path, monkeypatch):
    image = picture('photos/man.jpg')

    class Half(torch.nn.Module):
        def forward(self, x):
            return x[:, :1] * 0, (torch.arange(64.0).reshape(1, 1, 1, 64) < 32).float().expand(1, 1, 64, 64)

    torch.jit.trace(Half(), torch.zeros(1, 3, 512, 512)).save(tmp_path / 'half.pt')
    monkeypatch.setitem(sys.modules, 'rembg', types.SimpleNamespace(
        new_session=lambda name: name, remove=lambda image, session, only_mask: PIL.Image.fromarray(np.full(image.shape[:2], 9, np.uint8))))
    for matting, wanted in ((str(tmp_path / 'half.pt'), 127.5), ('rembg', 9), (lambda image: np.full(image.shape[:2], 255, np.uint8), 255)):
        head, = prepare_photo(image, tools=tools(), matting=matting)
        assert head.mask.mean() == pytest.approx(wanted, abs=2)
    head, = prepare_photo(image, tools=tools(), matting='none')
    assert head.mask is None and head.mask_source == 'none' and head.resized(64)[1] is None


def test_mattings_that_do_not_fit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rembg', None)
    with pytest.raises(UserError, match=r"--matting rembg.*pip install 'omnihead\[matting\]'"):
        find_matting('rembg')
    with pytest.raises(UserError, match='--matting modnet.*no such file'):
        find_matting('modnet')
    (tmp_path / 'a.pt').write_bytes(b'nothing')
    with pytest.raises(UserError, match='a.pt: not a TorchScript file'):
        find_matting(str(tmp_path / 'a.pt'))
    torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 3, 8, 8)).save(tmp_path / 'flat.pt')
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(UserError, match='flat.pt: gives'):
        find_matting(str(tmp_path / 'flat.pt'))(image)
    for wrong in (np.zeros((10, 20), np.uint8), np.zeros((20, 20))):
        with pytest.raises(UserError, match='wanted uint8'):
            find_matting(lambda image, wrong=wrong: wrong)(image)
