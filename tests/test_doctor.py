"""python -m torch_utils.doctor, and --require-fast: what is missing is said, and never silently done without."""

import pytest
import torch
from click.testing import CliRunner

from dnnlib import UserError
from torch_utils import doctor, misc
from torch_utils.ops import native
from training.volumetric_rendering.rays import Rays
from training.volumetric_rendering.renderer import RenderOptions, render_rays
from fake_generator import EllipsoidField

needs_native = pytest.mark.skipif(not native.load_native(), reason='no C++ operators here: no compiler, or switched off')


def run(*args, **env):
    return CliRunner().invoke(doctor.main, args, env=env)


@needs_native
def test_a_sound_machine():
    result = run('--device', 'cpu')
    assert result.exit_code == 0, result.output
    assert 'FAULT' not in result.output
    for word in (torch.__version__, 'volume renderer', 'upfirdn2d', 'convolution 3x3', 'times as fast'):
        assert word in result.output


def test_operators_switched_off():
    result = run('--device', 'cpu', OMNIHEAD_NATIVE='0')
    assert result.exit_code == 1
    assert 'FAULT' in result.output and 'unset OMNIHEAD_NATIVE' in result.output


@needs_native
def test_an_operator_that_differs_is_a_fault(monkeypatch):
    right = doctor.plain_upsampling
    monkeypatch.setattr(doctor, 'plain_upsampling', lambda x, f: right(x, f) * 1.01)
    result = run('--device', 'cpu')
    assert result.exit_code == 1
    assert 'FAULT: upfirdn2d' in result.output


def test_require_fast_refuses_plain_code(monkeypatch):
    monkeypatch.setenv('OMNIHEAD_NATIVE', '0')
    assert not native.load_native()
    monkeypatch.setenv('OMNIHEAD_REQUIRE_FAST', '1')
    for refused in (native.load_native, lambda: misc.resolve_device('cpu')):
        with pytest.raises(UserError, match='--require-fast.*OMNIHEAD_NATIVE=0'):
            refused()


def test_require_fast_refuses_fields_without_a_fused_renderer(monkeypatch):
    field = EllipsoidField(torch.zeros(3), torch.zeros(1))
    rays = Rays(torch.tensor([[[0.0, 0.0, 2.7]]]), torch.tensor([[[0.0, 0.0, -1.0]]]))
    render_rays(field, rays, RenderOptions())
    monkeypatch.setenv('OMNIHEAD_REQUIRE_FAST', '1')
    with pytest.raises(UserError, match='--require-fast.*EllipsoidField'):
        render_rays(field, rays, RenderOptions())
