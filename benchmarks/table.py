"""Writes the tables of docs/benchmarks.md from the JSON lines of the benchmarks.

    python benchmarks/frame.py --reference >> docs/benchmarks.jsonl
    python benchmarks/table.py docs/benchmarks.jsonl --write docs/benchmarks.md

Of every benchmark with the same settings the last line counts. Without --write the tables are printed.
"""

import json
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dnnlib import UserError  # noqa: E402
from dnnlib.cli import user_errors  # noqa: E402

BEGIN, END = '<!-- tables of benchmarks/table.py: begin -->', '<!-- tables of benchmarks/table.py: end -->'
CONDITIONS = ('device', 'threads', 'precision', 'commit', 'date')
KEYS = ('wall_sec', 'cpu_sec', 'peak_mb')
NOT_SETTINGS = {'benchmark', 'figures', 'versions', 'python', 'repeats', *CONDITIONS}


def read_records(lines):
    """Last record of every benchmark and its settings, in the order they first came. UserError naming a line that is none."""
    records = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key = (record['benchmark'], str(sorted((k, str(v)) for k, v in record.items() if k not in NOT_SETTINGS)),
                   record['device'], record['threads'], record['precision'])
            record['figures'].items()
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f'line {number} is no result of a benchmark: {line.strip()[:80]}') from error
        records[key] = record
    return list(records.values())


def table(record):
    """A record as a heading, its conditions and a Markdown table."""
    settings = ', '.join(f'{key} {value}' for key, value in record.items() if key not in NOT_SETTINGS)
    conditions = ', '.join(f'{record[key]}' if key == 'device' else f'{key} {record[key]}' for key in CONDITIONS)
    lines = [f'### {record["benchmark"]}', '', f'{settings}. {conditions}, torch {record["versions"]["torch"]}, medians of '
             f'{record["repeats"]}.', '', '| work | clock, s | processor, s | memory, MB | plain: clock | processor | memory | '
             'ratio: clock | processor | memory |', '| --- |' + ' --- |' * 9]
    for name, figure in record['figures'].items():
        cells = [format_cell(figure.get(variant, {}).get(key)) for variant in ('fast', 'reference') for key in KEYS]
        cells += [ratio(figure, key) for key in KEYS]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def format_cell(value):
    """A number with three digits that count, or a dash for None."""
    return '-' if value is None else f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'


def ratio(figure, key):
    """How many times the plain variant takes."""
    fast, plain = figure['fast'].get(key), figure.get('reference', {}).get(key)
    return format_cell(plain / fast) if fast and plain and fast > 0 else '-'


def replace_tables(text, tables):
    """`text` with what stands between the marks replaced. UserError if it has none."""
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise UserError(f'no place for the tables; the file needs lines {BEGIN} and {END}')
    before, _, rest = text.partition(BEGIN)
    return f'{before}{BEGIN}\n\n{tables}\n\n{END}{rest.partition(END)[2]}'


@click.command()
@click.argument('results', type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option('--write', 'target', type=click.Path(path_type=Path), default=None, help='Markdown file whose tables are replaced')
@user_errors
def main(results, target):
    """Tables of the JSON lines in RESULTS."""
    try:
        lines = [line for path in results for line in path.read_text(encoding='utf-8').splitlines()]
        tables = '\n\n'.join(table(record) for record in read_records(lines))
        if target is None:
            click.echo(tables)
        else:
            target.write_text(replace_tables(target.read_text(encoding='utf-8'), tables), encoding='utf-8')
    except OSError as error:
        raise UserError(str(error)) from error


if __name__ == '__main__':
    main()
