"""The one kind of exception that is shown to the user as a single line, and faults of texts that name no path."""

# Before a colon, these are no names of files.
_SCHEMES = {
    'abfs', 'abfss', 'az', 'b2', 'data', 'dbfs', 'file', 'ftp', 'ftps', 'gcs', 'gs', 'hdfs', 'http', 'https', 'memory',
    'oss', 's3', 's3a', 's3n', 'scp', 'sftp', 'ssh', 'wasb', 'wasbs', 'webhdfs',
}  # fmt: skip


class UserError(Exception):
    """A mistake that the user can correct, described in one line.

    The message names the key or path, the value found, what is allowed and what to do next. The scripts print it as
    ``error: ...`` on standard error and exit with code 2; no traceback is shown.
    """


def is_unicode(text: str) -> bool:
    """Return False for a text with lone surrogates: undecodable bytes of a file name, or a wrong escape in JSON."""
    return text.isascii() or not any('\ud800' <= char <= '\udfff' for char in text)


def text_fault(text: str) -> str:
    """Return the fault of a text with NUL or bytes that are not UTF-8, a phrase to follow 'NAME is'; '' if none."""
    if '\0' in text:
        return f'{text!r}, which contains a NUL character'
    if is_unicode(text):
        return ''
    return f'{text!r}, which is not UTF-8 text; rename the file or folder, or name a link to it (ln -s OLD NEW)'


def url_fault(path: str) -> str:
    """Return the fault of a path that is a URL, a phrase to follow 'NAME is'; '' for a local path.

    `remote:/x`, which tools such as rclone and scp read, is a URL, too; `C:/x` is none, since a drive has one letter.
    """
    scheme, colon, rest = path.strip().partition(':')
    is_scheme = len(scheme) > 1 and scheme.isascii() and all(char.isalnum() or char in '+.-_@' for char in scheme)
    if not (colon and is_scheme and (rest.startswith('/') or scheme.lower() in _SCHEMES)):
        return ''
    hint = '; copy the files to this machine or mount them'
    if scheme.lower() == 'file' and rest.startswith('/'):
        hint = f'; type /{rest.removeprefix("//localhost").lstrip("/")}'
    return f'{path!r}, a URL, but must be a local path such as ./data or /mnt/data{hint}'
