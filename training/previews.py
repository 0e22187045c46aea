"""Pictures of a run in progress: fixed reals, fakes of fixed latents, and the same heads from all sides."""

import contextlib

import numpy as np
import torch

import camera_utils
import dnnlib
from training import reporting

GRID_SIZE = (6, 4)           # columns and rows of the grids of reals and fakes
TURNTABLE_YAWS = tuple(range(0, -360, -45))
TURNTABLE_IDENTITIES = 3
# Picture of a generator's output, its file's suffix, the values shown as black and white (None: smallest and largest).
KINDS = (('image', '', (-1, 1)), ('image_raw', '_raw', (-1, 1)), ('image_depth', '_depth', None), ('image_mask', '_alpha', (0, 1)))


class Previews:
    """Writes the pictures of one run into `run_dir`.

    `dataset`: where reals come from; `cameras` [K, 25]: labels that fakes are seen from; `generator`: the network whose
    z_dim counts; `batch`: images at once; `seed` chooses reals, latents and labels.
    """

    def __init__(self, run_dir, dataset, cameras, generator, batch, seed):
        self.run_dir, self.batch = run_dir, batch
        self._dataset, self._seed = dataset, seed
        rng = np.random.RandomState(seed)
        num = GRID_SIZE[0] * GRID_SIZE[1]
        self._index = rng.randint(len(dataset), size=num)
        self.grid_z = torch.from_numpy(rng.randn(num, generator.z_dim).astype(np.float32)).to(cameras.device)
        self.grid_c = cameras[torch.as_tensor(self._index % len(cameras), device=cameras.device)]

    def save_reals(self):
        """Write the grid of reals and of their masks."""
        items = [self._readable(int(i)) for i in self._index]
        reporting.save_image_grid(np.stack([item['image'] for item in items]), self.run_dir / 'reals.png', (0, 255), GRID_SIZE)
        if 'mask' in items[0]:
            reporting.save_image_grid(np.stack([item['mask'] for item in items]), self.run_dir / 'segs.png', (0, 255), GRID_SIZE)

    def _readable(self, index, tries=16):
        """Item of that index, or the first after it that can be read."""
        for offset in range(tries - 1):
            with contextlib.suppress(dnnlib.UserError):
                return self._dataset[(index + offset) % len(self._dataset)]
        return self._dataset[(index + tries - 1) % len(self._dataset)]

    @torch.no_grad()
    def save_fakes(self, generator, label, resolution):
        """Write the grids of fakes and the turntable sheet of this moment, called after `label`; raw images have
        `resolution` pixels."""
        offset = generator.camera_offset(self.grid_z, self.grid_c)
        cameras = self.grid_c if offset is None else generator.move_camera(self.grid_c, offset)
        ws = generator.mapping(self.grid_z, self.grid_c[:, :generator.c_dim])
        fakes = self._generate(generator, ws, cameras, resolution)
        for name, suffix, drange in KINDS:
            values = -fakes[name] if name == 'image_depth' else fakes[name]
            reporting.save_image_grid(values, self.run_dir / f'fakes{label}{suffix}.png', drange, GRID_SIZE)
        views = turntable(generator, self.grid_z[:TURNTABLE_IDENTITIES], resolution)
        reporting.save_turntable_sheet(views, self.run_dir / f'views{label}.png')

    def _generate(self, generator, ws, cameras, resolution):
        """Images, one batch after another, as a dict of CPU tensors."""
        parts = []
        for start in range(0, ws.shape[0], self.batch):
            part = slice(start, start + self.batch)
            out = generator.synthesis(ws[part], cameras[part], resolution)
            parts.append({name: out[name].cpu() for name, _, _ in KINDS})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def turntable(generator, z, resolution):
    """Images [N, 3, H, W] of latents z [N, z_dim] from every side, one entry a side, front first."""
    prior = generator.camera
    front = camera_utils.front_label(prior.pivot, prior.radius, prior.fov_deg, z.device).expand(z.shape[0], -1)
    ws = generator.mapping(z, front[:, :generator.c_dim])
    field = generator.build_field(ws)
    sides = camera_utils.label_from_yaw(TURNTABLE_YAWS, lookat=(0, 0, 0), radius=prior.radius, fov_deg=prior.fov_deg, device=z.device)
    return [generator.render(field, ws, side.expand(z.shape[0], -1), resolution).image.cpu() for side in sides]
