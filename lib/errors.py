"""The one kind of exception that is shown to the user as a single line, and the lines for texts that are no paths."""

import re

_SCHEMES = 'abfss?|az|b2|data|dbfs|file|ftps?|gc?s|gcs|hdfs|https?|memory|oss|s3[an]?|scp|sftp|ssh|wasbs?|webhdfs'
# 'remote:/x' is one, too: what tools such as rclone and scp read. Not C:/x: a drive has one letter.
_URL = re.compile(rf'\s*(?:[a-z0-9][a-z0-9+.@_-]+:/|(?:{_SCHEMES}):)', re.IGNORECASE)
_FILE_URL = re.compile(r'\s*file:(?://(?:localhost)?)?(?=/)', re.IGNORECASE)


class UserError(Exception):
    """A mistake that the user can correct, described in one line.

    The message names the key or path, the value found, what is allowed and what to do next. The scripts print it as
    ``error: ...`` on standard error and exit with code 2; no traceback is shown.
    """


def text_fault(text: str) -> str:
    """Return the fault of a text with bytes that are not UTF-8, a phrase to follow 'NAME is'; '' for Unicode."""
    if text.isascii() or not any('\ud800' <= char <= '\udfff' for char in text):
        return ''
    return f'{text!r}, which is not UTF-8 text; rename the file or folder, or name a link to it (ln -s OLD NEW)'


def url_fault(path: str) -> str:
    """Return the fault of a path that is a URL, a phrase to follow 'NAME is'; '' for a local path."""
    if not _URL.match(path):
        return ''
    # Imported late: only errors need it.
    from urllib.parse import unquote

    file_url = _FILE_URL.match(path)
    hint = f'; type {unquote(path[file_url.end() :])}' if file_url else '; copy the files to this machine or mount them'
    return f'{path!r}, a URL, but must be a local path such as ./data or /mnt/data{hint}'
