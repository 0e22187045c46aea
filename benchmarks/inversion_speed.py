"""Times the steps of an inversion: a network's own picture, by every recipe, in both stages.

    python benchmarks/inversion_speed.py --reference
    python benchmarks/inversion_speed.py --reference --network panohead.pkl --recipe omni

An inversion runs until it is at a step of the stage, and takes STEPS more in every timed call; seconds are those of one. 'pso'
has its view from behind. What the recipes do beside the network, features and steps of Adam, is the same in both variants.
"""

import threading

import click
import harness
import torch
from inversion import opened, true_views

from inference.inversion import invert
from inference.inversion_options import RECIPES, recipe_options
from inference.inversion_run import Journal
from inference.perceptual import load_features
from inference.targets import Target

STEPS, LAST_STEP = 3, 10 ** 5
STAGES = {'latents': 'stage 1', 'generator': 'stage 2'}


class Pauses(Journal):
    """A journal that lets an inversion, in a thread of its own, take the steps of a stage as they are asked for."""

    def __init__(self, stage, run):
        super().__init__()
        self._stage, self._over, self._error = stage, False, None
        self._asked, self._waiting = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, args=(run,), daemon=True)
        self._thread.start()

    def _work(self, run):
        try:
            run(self)
            raise RuntimeError(f'the inversion ended before step {LAST_STEP}')
        except KeyboardInterrupt:
            pass                                   # close() asked for it
        except Exception as error:                 # noqa: BLE001, raised where a step is asked for
            self._error = error
        self._waiting.release()

    def offer(self, stage, make_state):
        """Wait before every step of the stage until it is wanted."""
        if stage == self._stage:
            self._waiting.release()
            self._asked.acquire()
            if self._over:
                raise KeyboardInterrupt

    def take(self, num):
        """Let it take `num` steps; returns their number."""
        for _ in range(num):
            self._wait()
            self._asked.release()
        self._wait()
        self._waiting.release()                    # it waits for the next call
        return num

    def close(self):
        """End the inversion."""
        self._over = True
        self._asked.release()
        self._thread.join()

    def _wait(self):
        self._waiting.acquire()
        if self._error is not None:
            self._waiting.release()                # for whoever asks again
            raise self._error


def start(recipe, stage, options, observe=None):
    """Pauses of an inversion of seed 0's head; `observe`: see inference.inversion.invert."""
    device = torch.device(options.device)
    session = opened(options.settings['network'], device, options.precision)
    labels, images = true_views(session, 0)
    turns = (0, 180) if recipe == 'pso' else (0,)
    targets = [Target(images[turn], labels[turn], '0', 'own', correct_camera=turn == 0) for turn in turns]
    steps = {'latents': {'steps_w': LAST_STEP, 'steps_g': 0}, 'generator': {'steps_w': 1, 'steps_g': LAST_STEP}}[stage]
    chosen = recipe_options(recipe, **steps, num_statistics=100, candidates=1, patience=0, enough_psnr=0.0)
    features = load_features('auto', device)
    return Pauses(stage, lambda journal: invert(session.generator, targets, features, chosen, observe, journal=journal))


def build(plain, options):
    """The work of a variant; the plain one differs by its process. One inversion is held at a time."""
    running = {}

    def call(recipe, stage):
        if (recipe, stage) not in running:
            for other in running.values():
                other.close()
            running.clear()
            running[recipe, stage] = start(recipe, stage, options)
        return running[recipe, stage].take(STEPS)
    recipes = RECIPES if options.settings['recipe'] == 'all' else [options.settings['recipe']]
    return {f'{recipe} {STAGES[stage]}': (lambda r=recipe, s=stage: call(r, s)) for recipe in recipes for stage in STAGES}


@click.option('--network', default='demo', show_default=True)
@click.option('--recipe', type=click.Choice(['all', *RECIPES]), default='all', show_default=True)
@harness.command
def main(network, recipe, **options):
    """Time the steps of an inversion."""
    harness.run('inversion_speed', **options, settings={'network': network, 'recipe': recipe})


if __name__ == '__main__':
    main()
