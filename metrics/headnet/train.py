"""Trains the built-in head network on synthetic heads and says how well it reads others.

    python -m metrics.headnet.train                  # anew: about an hour of one core
    python -m metrics.headnet.train --only_measure   # figures of the carried weights on held-out heads

Identities by supervised contrastive learning over views (Khosla et al., 2004.11362, equation 2).
"""

import copy
import dataclasses
import json
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from dnnlib.cli import user_errors
from metrics.headnet.accuracy import HELD_OUT_SEED, accuracy, small_parts
from metrics.headnet.examples import augmented, make_examples
from metrics.headnet.network import INPUT_SIZE, WEIGHTS, HeadNet, load_weights, save_weights
from torch_utils import misc
from training.synthetic.heads import HAIR_STYLES

TRAIN_SEED = 1_000_000
TEMPERATURE = 0.1
VIEWS_OF_BATCH = 3
EMA_DECAY = 0.998
LEARNING_RATE = 2e-3
WARM_UP = 100          # steps
SAVE_EVERY = 500       # steps
HELD_OUT = (300, 6)    # identities, views


def contrastive_loss(embedding, identity):
    """Mean over pictures of -log of the share their own identity's pictures have in the softmax of similarities."""
    embedding = F.normalize(embedding.float(), dim=1)
    logits = embedding @ embedding.t() / TEMPERATURE
    itself = torch.eye(len(identity), dtype=torch.bool, device=embedding.device)
    logits = logits.masked_fill(itself, -1e4)
    same = (identity[:, None] == identity[None]) & ~itself
    return -(logits.log_softmax(1) * same).sum(1).div(same.sum(1).clamp_min(1)).mean()


def losses(raw, examples, part):
    """{name: weighted loss} of the network's raw outputs for pictures of `examples` with part maps [N, 64, 64]."""
    seen = examples.face
    haired = (examples.style != HAIR_STYLES.index('bald')).float()
    weight = torch.stack([torch.ones_like(haired), haired, torch.ones_like(haired)], dim=1)[..., None]
    colours = (raw['colours'].unflatten(1, (3, 3)) - examples.colours).abs()
    return {
        'direction': 4 * (raw['direction'] - examples.direction).square().sum(1).mean(),
        'face': 0.5 * F.binary_cross_entropy_with_logits(raw['face'][:, 0], seen),
        'identity': contrastive_loss(raw['identity'], examples.identity),
        'parts': -2 * (raw['parts'].float().log_softmax(1) * small_parts(part)).sum(1).mean(),
        'style': 0.3 * F.cross_entropy(raw['style'], examples.style),
        'cloth_kind': 0.3 * F.cross_entropy(raw['cloth_kind'], examples.cloth_kind),
        'accessory': 0.2 * F.cross_entropy(raw['accessory'], examples.accessory),
        'colours': 2 * (colours * weight).mean(),
        'beard': 0.5 * ((raw['beard'][:, 0] - examples.beard).abs() * seen).mean(),
    }


def batches(examples, views, steps, batch_size, seed):
    """Yield `steps` index tensors: random identities, VIEWS_OF_BATCH of each one's `views` pictures."""
    random = np.random.default_rng(seed)
    num_identities = len(examples) // views
    for _ in range(steps):
        chosen = random.choice(num_identities, batch_size // VIEWS_OF_BATCH, replace=False)
        shown = np.stack([random.permutation(views)[:VIEWS_OF_BATCH] for _ in chosen])
        yield torch.from_numpy((chosen[:, None] * views + shown).reshape(-1))


def rate(step, steps):
    """Learning rate: a short rise, then half a cosine."""
    return LEARNING_RATE * min((step + 1) / WARM_UP, 0.5 * (1 + np.cos(np.pi * step / steps)))


def update_average(average, network, step):
    """Move the running average of weights towards the network; statistics of the batches are copied."""
    decay = min(EMA_DECAY, (step + 1) / (step + 10))
    with torch.no_grad():
        for old, new in zip(average.parameters(), network.parameters()):
            old.lerp_(new, 1 - decay)
        for old, new in zip(average.buffers(), network.buffers()):
            old.copy_(new if not new.is_floating_point() else old.lerp(new, 1 - decay))


def train(examples, views, steps, batch_size, seed, dest, start=None):
    """The averaged network after `steps` steps, from the weights of the file `start` if there is one; also written to `dest`
    now and then."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = (HeadNet() if start is None else load_weights(start)).train().requires_grad_(True).to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    half = misc.half_dtype(torch.device('cpu'))
    bar = tqdm(batches(examples, views, steps, batch_size, seed), total=steps, mininterval=20)
    for step, index in enumerate(bar):
        batch = examples[index]
        images, part = augmented(batch, generator)
        for group in optimizer.param_groups:
            group['lr'] = rate(step, steps)
        with torch.autocast('cpu', half, enabled=half != torch.float32):
            raw = network.raw(images.to(memory_format=torch.channels_last))
        terms = losses({name: values.float() for name, values in raw.items()}, batch, part)
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        update_average(average, network, step)
        if step % 50 == 0:
            bar.set_postfix({name: f'{value.item():.3f}' for name, value in terms.items()})
        if step % SAVE_EVERY == SAVE_EVERY - 1 or step == steps - 1:
            set_feature_scale(average, examples, generator)
            save_weights(average, dest)
    return average


@torch.no_grad()
def set_feature_scale(network, examples, generator, num=1000):
    """Measure mean and deviation of the features over `num` examples (before random backgrounds, otherwise as drawn)."""
    network.feature_mean.zero_()
    network.feature_std.fill_(1)
    index = torch.randperm(len(examples), generator=generator)[:num]
    features = torch.cat([network.features(augmented(examples[part], generator)[0]) for part in index.split(100)])
    network.feature_mean.copy_(features.mean(0))
    network.feature_std.copy_(features.std(0).clamp_min(1e-3))


def report(network, examples):
    """Figures on pictures as drawn (before grey) and on augmented ones."""
    generator = torch.Generator().manual_seed(1)
    pairs = [augmented(examples[index], generator) for index in torch.arange(len(examples)).split(128)]
    images, part = (torch.cat(column) for column in zip(*pairs))
    grey = (examples.head + (255 - examples.mask[:, None].int()) * 0.6).float() / 127.5 - 1
    return {'as_drawn': accuracy(network, examples, grey.clamp(-1, 1)),
            'augmented': accuracy(network, dataclasses.replace(examples, part=part), images)}


@click.command()
@click.option('--identities', help='Heads to learn from', type=click.IntRange(min=8), default=2000, show_default=True)
@click.option('--views', help='Pictures of each', type=click.IntRange(min=VIEWS_OF_BATCH), default=5, show_default=True)
@click.option('--steps', type=click.IntRange(min=1), default=3000, show_default=True)
@click.option('--batch', 'batch_size', help='Pictures a step', type=click.IntRange(min=6), default=96, show_default=True)
@click.option('--seed', type=int, default=0, show_default=True)
@click.option('--dest', help='File of the weights', type=click.Path(path_type=Path), default=WEIGHTS, show_default='the carried one')
@click.option('--start', help='Weights to go on from', type=click.Path(path_type=Path))
@click.option('--keep_examples', help='File to keep the pictures in from one run to the next', type=click.Path(path_type=Path))
@click.option('--held_out', help='Heads to measure with', type=click.IntRange(min=2), default=HELD_OUT[0], show_default=True)
@click.option('--only_measure', help='Train nothing, measure --dest', is_flag=True)
@user_errors
def main(identities, views, steps, batch_size, seed, dest, start, keep_examples, held_out, only_measure):
    """Train the head network and print its accuracy as JSON."""
    if not only_measure:
        if keep_examples and keep_examples.is_file():
            examples = torch.load(keep_examples, weights_only=False)
        else:
            examples = make_examples(range(TRAIN_SEED, TRAIN_SEED + identities), views)
            if keep_examples:
                torch.save(examples, keep_examples)
        train(examples, views, steps, min(batch_size, len(examples) // views * VIEWS_OF_BATCH), seed, dest, start)
    network = load_weights(dest)
    examples = make_examples(range(HELD_OUT_SEED, HELD_OUT_SEED + held_out), HELD_OUT[1])
    print(json.dumps({'bytes': dest.stat().st_size, 'input': INPUT_SIZE, **report(network, examples)}, indent=1))


if __name__ == '__main__':
    main()
