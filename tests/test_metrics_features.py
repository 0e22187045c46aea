"""Feature networks by name and by file: what is accepted under which name, and what is refused."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from dnnlib import UserError
from metrics import dinov2, features
from metrics.evaluate import plan
from metrics.features import FeatureNetwork, list_features, open_features

IMAGES = torch.arange(2 * 3 * 40 * 40).reshape(2, 3, 40, 40).remainder(251).to(torch.uint8)


class MeanColours(nn.Module):
    """Rows of mean colours."""

    def forward(self, images: torch.Tensor):
        return images.mean(dim=[2, 3])


class LikeInception(nn.Module):
    """Called as the literature's Inception file is."""

    def __init__(self, features: int):
        super().__init__()
        self.features = features

    def forward(self, images: torch.Tensor, return_features: bool = False, no_output_bias: bool = False):
        rows = images.mean(dim=[2, 3]).sum(dim=1, keepdim=True) / 765
        if return_features:
            return rows.expand(-1, self.features).contiguous()
        return torch.cat([rows, 1 - rows], dim=1) if no_output_bias else rows


class NoRows(nn.Module):
    """An image for an image."""

    def forward(self, images: torch.Tensor):
        return images


class NotFinite(nn.Module):
    """Rows of NaN."""

    def forward(self, images: torch.Tensor):
        return images.mean(dim=[2, 3]) / 0.0 * 0.0


def save(module, path):
    """Write a module as TorchScript."""
    torch.jit.save(torch.jit.script(module), str(path))
    return path


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A stand-in for the Inception file, whose digest counts as the published one, in a cache of its own."""
    monkeypatch.setattr(features.dnnlib.util, 'cache_folder', lambda: tmp_path / 'cache')
    path = save(LikeInception(2048), tmp_path / 'any name.pt')
    known = dataclasses.replace(features.PUBLISHED['inception'], digest=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(features.PUBLISHED, 'inception', known)
    monkeypatch.setitem(features._LOADERS, 'inception', known.load)
    monkeypatch.setattr(features, 'MIRROR', (tmp_path / 'mirror').as_posix() + '/')
    return path


def test_published_file_is_known_by_its_digest(published, tmp_path):
    network = open_features(published)
    assert (network.name, network.resolution, network(IMAGES).shape) == ('inception', 299, (2, 2048))
    assert network.digest == features.PUBLISHED['inception'].digest
    assert network.class_probabilities(IMAGES).sum(dim=1) == pytest.approx([1, 1])
    with pytest.raises(UserError, match='neither in .* nor can it be downloaded.*give its path, or one of .*seeded'):
        open_features('inception')
    kept = tmp_path / 'cache' / features.FOLDER / 'inception-2015-12-05.pt'
    kept.parent.mkdir(parents=True)
    kept.write_bytes(published.read_bytes())
    assert open_features('inception').name == 'inception'


def test_other_files_never_pass_for_the_published_one(published, tmp_path):
    other = save(LikeInception(2048), tmp_path / 'inception.pt')
    other.write_bytes(other.read_bytes() + b' ')
    network = open_features(other)
    assert network.name.startswith('inception-') and plan(['fid50k_full'], features=[other])[0].name == f'fid50k_full-{network.name}'
    kept = tmp_path / 'cache' / features.FOLDER / 'inception-2015-12-05.pt'
    kept.parent.mkdir(parents=True)
    kept.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match='is not the published inception-2015-12-05.pt'):
        open_features('inception')


def test_any_torchscript_file(tmp_path):
    network = open_features(save(MeanColours(), tmp_path / 'colours.v2.pt'))
    assert network.name == 'colours.v2' and network.digest == hashlib.sha256((tmp_path / 'colours.v2.pt').read_bytes()).hexdigest()
    expected = IMAGES.float().mean(dim=[2, 3])
    assert torch.allclose(network(IMAGES), expected) and torch.allclose(network(IMAGES.float()), expected)
    assert torch.equal(network.perceptual_features(IMAGES), network(IMAGES))
    with pytest.raises(UserError, match='has no classes'):
        network.class_probabilities(IMAGES)
    with pytest.raises(ValueError, match='uint8'):
        network(IMAGES[:, :1])


@pytest.mark.parametrize('make, words', [
    (lambda p: p.write_bytes(b''), 'not a TorchScript file'),
    (lambda p: p.write_bytes(b'\x89PNG nothing'), 'not a TorchScript file'),
    (lambda p: torch.save({'weight': torch.zeros(3)}, p), 'not a TorchScript file'),
    (lambda p: np.savez(p.open('wb'), mu=np.zeros(2048)), 'not a TorchScript file'),
    (lambda p: save(NoRows(), p), r'must give features as float rows \[N, F\], gives \(2, 3, 64, 64\)'),
    (lambda p: save(NotFinite(), p), 'not finite'),
    (lambda p: save(nn.Linear(3, 3), p), 'gives no features'),
    (lambda p: torch.save({'cls_token': torch.zeros(1, 1, 100), 'blocks.0.x': torch.zeros(1), 'pos_embed': torch.zeros(1, 2, 100)}, p),
     'DINOv2 of width 100'),
    (lambda p: torch.save({'cls_token': torch.zeros(1, 1, 384), 'blocks.0.x': torch.zeros(1), 'pos_embed': torch.zeros(1, 2, 384)}, p),
     'not the weights of dinov2_vits14'),
], ids=['empty', 'picture', 'weights', 'statistics', 'images', 'nan', 'rows', 'wide dino', 'broken dino'])
def test_wrong_kinds_of_files_are_refused(tmp_path, make, words):
    path = tmp_path / 'features.pt'
    make(path)
    with pytest.raises(UserError, match=words):
        open_features(path)


def test_unknown_names_list_the_known():
    with pytest.raises(UserError, match='--features resnet: neither a known network .*builtin.*inception.*seeded.* nor a file'):
        open_features('resnet')
    with pytest.raises(ValueError, match='twice'):
        features.register_features('seeded')(print)
    with pytest.raises(UserError, match='dinov2_vits14_pretrain.pth is in none of'):
        open_features('dinov2_vits14')
    assert {'builtin', 'dinov2', 'inception', 'seeded', 'vgg16'} <= set(list_features())


def test_metrics_choose_among_networks(published, tmp_path):
    colours = save(MeanColours(), tmp_path / 'colours.pt')
    names = [(job.metric.name, job.features.name, job.name) for job in
             plan(['fid50k_full', 'pr50k3_full', 'frechet_seeded'], num=1500, features=[colours, published])]
    assert names == [('fid50k_full', 'inception', 'fid1.5k_full'), ('pr50k3_full', 'colours', 'pr1.5k3_full-colours'),
                     ('frechet_seeded', 'seeded', 'frechet_seeded')]
    assert plan(['is50k'], features=[published])[0].name == 'is50k'
    with pytest.raises(UserError, match='is50k: needs a network that tells classes, which --features colours'):
        plan(['is50k'], features=[colours])


# ---------------------------------------------------------------------------------------------------------------------
# DINOv2.

def test_dinov2_against_torch_transformer(tmp_path):
    """Without layer scale a block is torch's own pre-norm encoder layer."""
    torch.manual_seed(0)
    width, side = 384, 16
    network = dinov2.DinoV2(width, 2, 1 + side * side).eval()
    layers = []
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn_like(p) * 0.05)
        for block in network.blocks:
            block.ls1.gamma.fill_(1)
            block.ls2.gamma.fill_(1)
            layer = nn.TransformerEncoderLayer(width, 6, 4 * width, dropout=0, activation='gelu', layer_norm_eps=1e-6, batch_first=True,
                                               norm_first=True)
            layer.self_attn.in_proj_weight.copy_(block.attn.qkv.weight)
            layer.self_attn.in_proj_bias.copy_(block.attn.qkv.bias)
            pairs = [(layer.self_attn.out_proj, block.attn.proj), (layer.norm1, block.norm1), (layer.norm2, block.norm2),
                     (layer.linear1, block.mlp['fc1']), (layer.linear2, block.mlp['fc2'])]
            for own, other in pairs:
                own.load_state_dict(other.state_dict())
            layers.append(layer)
        images = torch.randint(256, [2, 3, 224, 224]).float()
        patches = network.patch_embed['proj']((images / 255 - network.mean) / network.std).flatten(2).transpose(1, 2)
        tokens = torch.cat([network.cls_token.expand(2, -1, -1), patches], dim=1) + network.pos_embed
        for layer in layers:
            tokens = layer.train()(tokens)     # the plain path, not the fused one
        expected = network.norm(tokens)[:, 0]
    torch.save(network.state_dict(), tmp_path / 'dinov2_vits14_pretrain.pth')
    opened = open_features(tmp_path / 'dinov2_vits14_pretrain.pth')
    assert (opened.name, opened.resolution) == ('dinov2_vits14', 224) and isinstance(opened, FeatureNetwork)
    assert torch.allclose(opened(images.to(torch.uint8)), expected, atol=1e-4)


def test_dinov2_positions_of_another_size():
    """Trained on 37 x 37 patches, read at 16 x 16: a ramp over the grid is read in steps of 37 / 16.1, as published."""
    network = dinov2.DinoV2(384, 1, 1 + 37 * 37)
    ramp = torch.arange(37.0).expand(37, 37)[..., None].expand(-1, -1, 384)
    network.pos_embed.data[:, 1:] = ramp.reshape(1, -1, 384)
    grid = network.positions(16)[0, 1:, 0].reshape(16, 16)
    assert torch.allclose((grid[:, 13] - grid[:, 2]) / 11, torch.tensor(37 / 16.1), atol=5e-3)


def test_dinov2_is_found_in_the_cache(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(dinov2.dnnlib.util, 'cache_folder', lambda: tmp_path)
    (tmp_path / dinov2.FOLDER).mkdir()
    torch.save(dinov2.DinoV2(384, 1, 5).state_dict(), tmp_path / dinov2.FOLDER / 'dinov2_vits14_pretrain.pth')
    network = open_features('dinov2_vits14')
    assert network.name == 'dinov2_vits14' and network(IMAGES).shape == (2, 384)
    (tmp_path / dinov2.FOLDER / 'dinov2_vitb14_pretrain.pth').write_bytes(b'nothing')
    with pytest.raises(UserError, match='dinov2_vitb14: .* does not hold DINOv2 weights'):
        open_features('dinov2_vitb14')
