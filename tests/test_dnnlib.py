"""dnnlib: configuration dicts, downloads, files that appear whole, logging, and the types of command lines."""

import http.server
import io
import os
import stat
import sys
import threading
import urllib.request

import click
import pytest

import dnnlib
from dnnlib import cli, util


# ---------------------------------------------------------------------------------------------------------------------
# Small things.

def test_easy_dict():
    d = dnnlib.EasyDict(a=1)
    d.b = 2
    assert d == {'a': 1, 'b': 2} and d.a == d['a'] == 1
    del d.a
    with pytest.raises(AttributeError, match='a'):
        print(d.a)
    assert not hasattr(d, 'a') and d == {'b': 2}


def test_construction_by_name():
    made = dnnlib.construct_class_by_name(class_name='dnnlib.util.EasyDict', a=1)
    assert type(made) is dnnlib.EasyDict and made == {'a': 1}
    for name in ('dnnlib.util.Absent', 'absent_package.X', 'nothing', ''):
        with pytest.raises(ImportError):
            dnnlib.construct_class_by_name(class_name=name)
    with pytest.raises(TypeError, match='banana'):
        dnnlib.construct_class_by_name(class_name='dnnlib.cli.FiniteFloat', banana=1)


@pytest.mark.parametrize('seconds, text', [
    (0, '0s'), (59.4, '59s'), (59.6, '1m 00s'), (125, '2m 05s'), (3723, '1h 02m 03s'), (176520, '2d 01h 02m')])
def test_format_time(seconds, text):
    assert dnnlib.format_time(seconds) == text


@pytest.mark.parametrize('number, text', [(0, '0 heads'), (1, '1 head'), (2, '2 heads')])
def test_counted(number, text):
    assert util.counted(number, 'head') == text


def test_logger_copies_what_is_printed(tmp_path, capsys):
    before = sys.stdout
    for word in ('one', 'two'):
        with dnnlib.Logger(tmp_path / 'log.txt'):
            sys.stdout.write(f'{word}\n')
            sys.stdout.flush()
            assert (tmp_path / 'log.txt').read_text().endswith(f'{word}\n')
    assert sys.stdout is before
    assert capsys.readouterr().out == (tmp_path / 'log.txt').read_text() == 'one\ntwo\n'


# ---------------------------------------------------------------------------------------------------------------------
# Files that appear whole or not at all.

def ordinary_mode(folder):
    (folder / 'ordinary').touch()
    return stat.S_IMODE((folder / 'ordinary').stat().st_mode)


def test_file_takes_its_name_at_the_end(tmp_path):
    path = tmp_path / 'a.png'
    path.write_text('before')
    with util.written_whole(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == '.png' and temporary != path
        with util.written_whole(path) as other:
            assert other != temporary
            other.write_text('other')
        temporary.write_text('after')
        assert path.read_text() == 'other'
    assert path.read_text() == 'after' and [p.name for p in tmp_path.iterdir()] == ['a.png']
    if os.name == 'posix':
        assert stat.S_IMODE(path.stat().st_mode) == ordinary_mode(tmp_path)


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_file_that_is_not_finished_leaves_what_was_there(tmp_path, error):
    path = tmp_path / 'a.png'
    path.write_text('before')
    with pytest.raises(error), util.written_whole(path) as temporary:
        temporary.write_text('half')
        raise error
    assert path.read_text() == 'before' and [p.name for p in tmp_path.iterdir()] == ['a.png']


# ---------------------------------------------------------------------------------------------------------------------
# Downloads.

class Handler(http.server.BaseHTTPRequestHandler):
    """Serves 'content' under every path but /absent and, ending too early, /short."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(404 if self.path == '/absent' else 200)
        self.send_header('Content-Length', '100' if self.path == '/short' else '7')
        self.end_headers()
        self.wfile.write(b'content')

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine alone; the cache is the empty folder tmp_path / 'cache'."""
    monkeypatch.setenv('OMNIHEAD_CACHE', str(tmp_path / 'cache'))
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.asked = []
    server.address = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_local_file(tmp_path):
    (tmp_path / 'x').write_bytes(b'content')
    with dnnlib.open_url(tmp_path / 'x') as file:
        assert file.read() == b'content'
    with pytest.raises(dnnlib.UserError, match='absent'):
        dnnlib.open_url(tmp_path / 'absent')


def test_download_is_kept(server, tmp_path):
    for _ in range(2):
        assert dnnlib.open_url(f'{server.address}/x.pkl').read() == b'content'
    assert server.asked == ['/x.pkl']
    kept = list((tmp_path / 'cache').iterdir())
    assert len(kept) == 1 and kept[0].name.endswith('_x.pkl')
    if os.name == 'posix':
        assert stat.S_IMODE(kept[0].stat().st_mode) == ordinary_mode(tmp_path)


@pytest.mark.parametrize('name', ['absent', 'short'])
def test_failed_download(server, tmp_path, name):
    with pytest.raises(dnnlib.UserError, match=f'cannot download http://127.*/{name}.*by hand'):
        dnnlib.open_url(f'{server.address}/{name}')
    assert not list(tmp_path.glob('cache/*'))


@pytest.mark.parametrize('address', ['http://a b/x.pkl', 'http://[x/x.pkl', 'http://', 'https://127.0.0.1:x/x.pkl'])
def test_addresses_that_are_none(address, tmp_path, monkeypatch):
    monkeypatch.setenv('OMNIHEAD_CACHE', str(tmp_path))
    assert util.is_url(address)
    with pytest.raises(dnnlib.UserError, match='cannot download'):
        dnnlib.open_url(address)


@pytest.mark.parametrize('path', ['x.pkl', '/x/http/x.pkl', 'c:/x.pkl', '[x', 'ftp://x/y'])
def test_paths_are_no_addresses(path):
    assert not util.is_url(path)


@pytest.mark.parametrize('name', ['', 'x.pkl', 'x' * 400])
def test_cache_that_cannot_be_written(server, tmp_path, monkeypatch, name):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('OMNIHEAD_CACHE', str(tmp_path / 'file' / 'cache'))
    assert dnnlib.open_url(f'{server.address}/{name}').read() == b'content'


def test_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt
    monkeypatch.setenv('OMNIHEAD_CACHE', str(tmp_path))
    monkeypatch.setattr(urllib.request, 'urlopen', lambda *_, **__: io.BytesIO(b'content'))
    monkeypatch.setattr(os, 'replace', interrupt)
    with pytest.raises(KeyboardInterrupt):
        dnnlib.open_url('http://example.org/x.pkl')
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# Command lines.

@pytest.mark.parametrize('text, seeds', [
    ('0-3,7', [0, 1, 2, 3, 7]), ('5', [5]), (' 1 , 2', [1, 2]), ('4294967295', [2 ** 32 - 1])])
def test_seeds(text, seeds):
    assert cli.SeedRange().convert(text, None, None) == seeds


@pytest.mark.parametrize('kind, text, message', [
    (cli.SeedRange(), '3-1', 'run upwards'), (cli.SeedRange(), '4294967296', 'below'), (cli.SeedRange(), '-1', 'not a list'),
    (cli.SeedRange(), '', 'not a list'), (cli.SeedRange(), '0-2000000', 'million'),
    (cli.Size(), '4', 'form'), (cli.Size(), '0x2', 'at least 1'), (cli.Size(), '2x-1', 'form'),
    (cli.FiniteFloat(), 'x', "'x' is not a number"), (cli.FiniteFloat(), 'nan', "'nan' is not a finite number$"),
    (cli.FiniteFloat(), 'inf', "'inf' is not a finite number$"),
    (cli.FiniteFloat(0), '-1', 'not a finite number of at least 0$'), (cli.FiniteFloat(0), 'inf', 'of at least 0$'),
    (cli.FiniteFloat(max=2), '3', 'not a finite number of at most 2$'),
    (cli.FiniteFloat(0, 180), '181', r'not a finite number from 0 to 180$'),
])
def test_values_that_are_refused(kind, text, message):
    with pytest.raises(click.BadParameter, match=message):
        kind.convert(text, None, None)


def test_sizes_and_numbers():
    assert cli.Size().convert('4x2', None, None) == (4, 2)
    assert [cli.FiniteFloat(0, 2).convert(text, None, None) for text in ('0', '2', '1e-3')] == [0, 2, 0.001]


def test_writable_folder(tmp_path):
    assert cli.writable_folder(str(tmp_path / 'a' / 'b')) == tmp_path / 'a' / 'b'
    assert list((tmp_path / 'a').iterdir()) == [tmp_path / 'a' / 'b'] and not list((tmp_path / 'a' / 'b').iterdir())
    (tmp_path / 'file').touch()
    for path, message in ((tmp_path / 'file', '--outdir .*file: is a file'), ('', '--outdir is empty'),
                          (tmp_path / 'file' / 'x', '--outdir .*x: cannot write')):
        with pytest.raises(dnnlib.UserError, match=message):
            cli.writable_folder(path)


def test_user_errors_end_without_traceback():
    @cli.user_errors
    def command():
        raise dnnlib.UserError('--flag x: wrong')
    with pytest.raises(click.ClickException, match='--flag x: wrong') as caught:
        command()
    assert caught.value.exit_code == 2
