"""The commands of README.md: fenced code blocks by language, and single commands out of bash blocks."""

import re
import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block: `language` is the word after the fence ('' if none), `heading` the last heading above it,
    `line` the number of its first line of text in the file, from 1."""
    language: str
    heading: str
    line: int
    text: str


def code_blocks(markdown, language=None):
    """All fenced blocks of a Markdown text in order, or those of one language. Raises ValueError on an open fence."""
    blocks, heading, fence = [], '', None
    for number, line in enumerate(markdown.splitlines(), 1):
        marker = re.match(r'( *)(`{3,}|~{3,}) *([\w+-]*)', line)
        if fence is None and marker:
            fence = marker[2], marker[3].lower(), number + 1, len(marker[1]), []
        elif fence is None:
            title = re.match(r'#{1,6} +(.*?) *#*$', line)
            heading = title[1] if title else heading
        elif marker and marker[2].startswith(fence[0]) and line.strip() == marker[2]:
            blocks.append(CodeBlock(fence[1], heading, fence[2], '\n'.join(fence[4])))
            fence = None
        else:
            # A fence inside a list is indented; its text is indented with it.
            fence[4].append(line[min(fence[3], len(line) - len(line.lstrip(' '))):])
    if fence is not None:
        raise ValueError(f'the code block before line {fence[2]} is never closed')
    return [b for b in blocks if language is None or b.language == language]


def commands(block):
    """Commands of a bash block as lists of words: comments and prompts dropped, continued lines joined."""
    joined = re.sub(r'\\\n\s*', ' ', block.text)
    lines = (re.sub(r'^\$ +', '', line.strip()) for line in joined.splitlines())
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def readme_commands(path):
    """[(heading, line of the block, words)] of every command in the bash blocks of the Markdown file `path`."""
    blocks = code_blocks(path.read_text(encoding='utf-8'), 'bash')
    return [(block.heading, block.line, words) for block in blocks for words in commands(block)]
