"""Memory and speed of the metrics themselves at their full count: 50,000 fakes against as many reals, with features as wide
as Inception's, from a generator and a feature network that cost almost nothing.

    python -m benchmarks.metrics_memory --metrics fid50k_full,kid50k_full,pr50k3_full

Prints, per metric, the peak of resident memory beyond what the process held before, and the images per second of each part.
"""

import threading
import time

import click
import numpy as np
import psutil
import torch
from torch import nn

from dnnlib.cli import user_errors
from metrics.evaluate import Evaluator, plan
from metrics.evaluation import Evaluation
from metrics.features import FeatureNetwork
from training.generators.base import CameraPrior

SIZE = 32
INTERVAL = 0.05       # seconds between looks at the memory


class PlainGenerator(nn.Module):
    """Paints z; as little work as a generator can be."""
    z_dim, c_dim, img_resolution, camera = 3 * SIZE * SIZE, 25, SIZE, CameraPrior()

    def mapping(self, z, c, truncation_psi=1):
        """z as latents."""
        return z * truncation_psi

    def camera_offset(self, z, c):
        """None: cameras stay."""
        return None

    def synthesis(self, ws, c):
        """Images of latents."""
        return {'image': (ws.reshape(-1, 3, SIZE, SIZE) / 3).clamp(-1, 1)}


class DrawnSet(torch.utils.data.Dataset):
    """Random images, drawn when asked for."""
    resolution, label_dim, has_labels, has_masks = SIZE, 25, True, False

    def __init__(self, num):
        self.num = num

    def __len__(self):
        return self.num

    def __getitem__(self, i):
        return {'image': np.random.default_rng(i).integers(0, 256, [3, SIZE, SIZE], dtype=np.uint8), 'label': np.zeros(25, np.float32)}

    def get_labels(self):
        """Zeros [num, 25]."""
        return np.zeros([self.num, 25], dtype=np.float32)


class Watch:
    """Peak of this process's resident memory, in MB, while the context lasts, beyond what it held at its start."""

    def __enter__(self):
        self._process, self._running = psutil.Process(), True
        self._start = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self):
        while self._running:
            self.peak = max(self.peak, self._process.memory_info().rss)
            time.sleep(INTERVAL)

    def __exit__(self, *_):
        self._running = False
        self._thread.join()
        self.megabytes = (self.peak - self._start) / 2 ** 20


@click.command()
@click.option('--metrics', default='fid50k_full,kid50k_full', show_default=True, help='Names with commas between')
@click.option('--num', default=50_000, show_default=True, help='Fakes, and reals')
@click.option('--features', 'num_features', default=2048, show_default=True, help='Width of the features, at most 3072')
@click.option('--batch', default=64, show_default=True, help='Images at a time')
@user_errors
def main(metrics, num, num_features, batch):
    """Measure the metrics themselves."""
    network = FeatureNetwork('plain', 'plain', None, lambda images: images.flatten(1)[:, :num_features] / 255,
                             lambda images: images.flatten(1)[:, :1000].softmax(dim=1))
    jobs = [type(job)(job.metric, num, network) for job in plan(metrics.split(','), features=['seeded'])]
    evaluator = Evaluator(Evaluation(PlainGenerator(), DrawnSet(num), num, batch_size=batch, progress=True), jobs)
    for job in jobs:
        start = time.monotonic()
        with Watch() as watch:
            results = evaluator.compute(job)
        print(f'{job.metric.name}: peak {watch.megabytes:.0f} MB beyond the start, {time.monotonic() - start:.0f} s, {results}')
    for (source, number), seconds in evaluator.seconds.items():
        print(f'{source}s: {number / seconds:.0f} images per second with all collectors')
    evaluator.close()


if __name__ == '__main__':
    main()
