"""Pictures the head network learns from: synthetic heads without their background, in all views and lights, and what is
done to them (other backgrounds, crops, blur, noise, colours) so that it may meet generated pictures."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from camera_utils import HEAD_RADIUS, make_label, pose_from_origin, split_label
from metrics.headnet.network import INPUT_SIZE
from training.synthetic.heads import sample_identities
from training.synthetic.parts import PARTS, part_maps
from training.synthetic.render import render_heads

CAMERA_STREAM = 7          # keeps these cameras' random numbers apart from the data set's
LIGHT_OFFSET = 50_000_000  # seeds of the borrowed lights
FACE_SHARE = 0.05          # the face is seen where it is more than this share of the head's pixels
IDENTITIES_AT_ONCE = 16


@dataclass(frozen=True)
class Examples:
    """M pictures, those of one identity one after the other. head uint8 [M, 3, 64, 64]: colours times mask; mask, part uint8
    [M, 64, 64]: 0..255 and indices into PARTS; direction [M, 3] to the camera; identity [M] int64; style, cloth_kind,
    accessory [M] int64; colours [M, 3, 3] of skin, hair, clothes; beard [M]."""
    head: torch.Tensor
    mask: torch.Tensor
    part: torch.Tensor
    direction: torch.Tensor
    identity: torch.Tensor
    style: torch.Tensor
    cloth_kind: torch.Tensor
    accessory: torch.Tensor
    colours: torch.Tensor
    beard: torch.Tensor

    def __len__(self):
        return len(self.head)

    def __getitem__(self, index):
        return Examples(*(getattr(self, field.name)[index] for field in fields(self)))

    @property
    def face(self):
        """[M] float: 1 where the face is seen."""
        face = (self.part == PARTS.index('face')).flatten(1).sum(1)
        return (face > FACE_SHARE * (self.part > 0).flatten(1).sum(1)).float()


def random_cameras(seeds, max_pitch_deg=40.0):
    """Labels [N, 25], one per seed: all yaws, pitches about level, somewhat varied distances and points looked at."""
    draws = np.array([np.random.default_rng([int(seed), CAMERA_STREAM]).random(6) for seed in seeds], dtype=np.float32)
    draws = torch.from_numpy(draws)
    yaw = (draws[:, 0] * 2 - 1) * torch.pi
    # The mean of two uniform numbers: most cameras near the horizon, some far from it.
    pitch = (draws[:, 1] + draws[:, 2] - 1) * np.deg2rad(max_pitch_deg)
    direction = torch.stack([pitch.cos() * yaw.sin(), pitch.sin(), pitch.cos() * yaw.cos()], dim=1)
    radius = HEAD_RADIUS * (1 + 0.07 * (2 * draws[:, 3:4] - 1))
    lookat = torch.stack([torch.zeros(len(draws)), 0.04 * (draws[:, 4] - 0.5), 0.22 * draws[:, 5]], dim=1)
    return make_label(pose_from_origin(radius * direction, lookat))


def view_directions(labels):
    """[N, 3] unit vectors against the direction in which cameras `labels` [N, 25] look: where they stand, seen from the head."""
    return -split_label(labels)[0][:, :3, 2]


def without_backdrop(identities):
    """The identities before black, so that their pictures are colours times mask."""
    backdrop = identities.backdrop
    plain = replace(backdrop, kind=torch.zeros_like(backdrop.kind), colours=torch.zeros_like(backdrop.colours))
    return replace(identities, backdrop=plain)


def make_examples(seeds, views, progress=True):
    """Examples of the identities `seeds`, `views` pictures each; every second picture is under another head's light."""
    parts = []
    for start in tqdm(range(0, len(seeds), IDENTITIES_AT_ONCE), desc='heads', disable=not progress):
        chosen = [seed for seed in seeds[start:start + IDENTITIES_AT_ONCE] for _ in range(views)]
        numbers = torch.tensor(chosen) * views + torch.arange(len(chosen)) % views
        people = without_backdrop(sample_identities(chosen))
        borrowed = sample_identities((numbers + LIGHT_OFFSET).tolist()).light
        own = torch.arange(len(chosen)) % 2 == 0
        light = replace(people.light, **{
            field.name: torch.where(own.reshape(-1, *[1] * (getattr(borrowed, field.name).ndim - 1)),
                                    getattr(people.light, field.name), getattr(borrowed, field.name))
            for field in fields(borrowed)})
        people = replace(people, light=light)
        labels = random_cameras(numbers.tolist())
        batch = render_heads(people, labels, INPUT_SIZE, samples=2)
        paint = people.paint
        parts.append(Examples(((batch.image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8),
                              (batch.mask[:, 0] * 255).round().to(torch.uint8), part_maps(people, labels, batch.depth),
                              view_directions(labels), people.seeds, people.style, paint.cloth_kind, paint.accessory.long(),
                              torch.stack([paint.skin, paint.hair, paint.cloth], 1), paint.face[:, -2]))
    return Examples(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Examples)))


def random_backgrounds(num, generator):
    """float [num, 3, 64, 64] in [0, 1]: noise as coarse as one colour and as fine as pixels, some black or white."""
    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    pictures = []
    for size in (1, 2, 4, 8, 24):
        pictures.append(F.interpolate(rand(num, 3, size, size), size=(INPUT_SIZE, INPUT_SIZE), mode='bilinear', align_corners=False))
    weights = rand(num, len(pictures)) ** 4
    weights = weights / weights.sum(1, keepdim=True)
    mixed = sum(weight[:, None, None, None] * picture for weight, picture in zip(weights.unbind(1), pictures))
    contrast = 0.3 + 1.4 * rand(num, 1, 1, 1)
    mixed = ((mixed - 0.5) * contrast + 0.1 + 0.8 * rand(num, 1, 1, 1)).clamp(0, 1)
    plain, white = rand(num, 1, 1, 1) < 0.1, (rand(num, 1, 1, 1) < 0.5).float()
    return torch.where(plain, white.expand_as(mixed), mixed)


def augmented(examples, generator):
    """(images [N, 3, 64, 64] in [-1, 1], parts [N, 64, 64] int64): crops, turns, backgrounds, colours, blur and noise."""
    num = len(examples)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    scale = torch.exp((rand(num) - 0.5) * 0.4)                       # of what is seen: 0.82 .. 1.22
    turn = (rand(num) - 0.5) * 0.3                                   # radians
    shift = (rand(num, 2) - 0.5) * 0.24                              # of half the picture
    rows = [torch.stack([scale * turn.cos(), -scale * turn.sin(), shift[:, 0]], 1),
            torch.stack([scale * turn.sin(), scale * turn.cos(), shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [num, 4, INPUT_SIZE, INPUT_SIZE], align_corners=False)
    layers = torch.cat([examples.head, examples.mask[:, None]], dim=1).float() / 255
    layers = F.grid_sample(layers, grid, mode='bilinear', padding_mode='border', align_corners=False)
    part = F.grid_sample(examples.part[:, None].float(), grid, mode='nearest', padding_mode='border', align_corners=False)
    image = layers[:, :3] + (1 - layers[:, 3:]) * random_backgrounds(num, generator)
    image = image.clamp(0, 1) ** torch.exp((rand(num, 1, 1, 1) - 0.5) * 0.5)
    image = image * (1 + (rand(num, 3, 1, 1) - 0.5) * 0.12 + (rand(num, 1, 1, 1) - 0.5) * 0.3) + (rand(num, 1, 1, 1) - 0.5) * 0.1
    image = image.clamp(0, 1) * 2 - 1
    # Every fifth of the batch at another resolution; which heads these are changes from batch to batch.
    order = torch.randperm(num, generator=generator)
    for size, index in zip((24, 32, 40, 52), order.tensor_split(5)):
        small = F.interpolate(image[index], size=(size, size), mode='bilinear', antialias=True)
        image[index] = F.interpolate(small, size=(INPUT_SIZE, INPUT_SIZE), mode='bilinear')
    strength = (rand(num, 1, 1, 1) - 0.5).clamp_min(0) * 0.3
    image = image + strength * torch.randn(image.shape, generator=generator)
    return image.clamp(-1, 1), part[:, 0].long()
