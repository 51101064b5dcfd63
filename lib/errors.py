"""The one kind of exception that is shown to the user as a single line, and untrusted values in such lines."""

# Before a colon, these are no names of files.
_SCHEMES = {
    'abfs', 'abfss', 'az', 'b2', 'data', 'dbfs', 'file', 'ftp', 'ftps', 'gcs', 'gs', 'hdfs', 'http', 'https', 'memory',
    'oss', 's3', 's3a', 's3n', 'scp', 'sftp', 'ssh', 'wasb', 'wasbs', 'webhdfs',
}  # fmt: skip
STORAGE_SCHEMES = ('s3', 'gs', 'abfs', 'abfss', 'https')  # of URLs that can be read: see lib/runtime/storage.py


class UserError(Exception):
    """A mistake that the user can correct, described in one line.

    The message names the key or path, the value found, what is allowed and what to do next. The scripts print it as
    ``error: ...`` on standard error and exit with code 2; no traceback is shown.
    """


def is_unicode(text: str) -> bool:
    """Return False for a text with lone surrogates: undecodable bytes of a file name, or a wrong escape in JSON."""
    return text.isascii() or not any('\ud800' <= char <= '\udfff' for char in text)


def printable(text: str) -> str:
    r"""Return a text of any length in one line, without quotes, with control characters escaped.

    Line ends could forge a line, escape sequences colors, marks of direction another order of the letters. A byte that
    is not UTF-8 becomes `\xff`. For lines and columns as a whole; a value in a sentence is `shown`.
    """
    if text.isprintable():
        return text
    return ''.join(char if _is_plain(char) else _byte_text(char) or _escape(char) for char in text)


def _is_plain(char: str) -> bool:
    # The joiners are part of words in Persian and in Indian languages, and of emojis.
    return char.isprintable() or char in '\u200c\u200d'


def _byte_text(char: str) -> str:
    return f'\\x{ord(char) - 0xDC00:02x}' if '\udc80' <= char <= '\udcff' else ''


def _escape(char: str) -> str:
    return char.encode('unicode_escape', 'surrogatepass').decode('ascii')


def one_line(message: str) -> str:
    """Return a message of any length in one line: line ends become blanks, other control characters are escaped."""
    return printable(' '.join(part.strip() for part in message.strip().splitlines() if not part.isspace()))


MAX_SHOWN = 70  # characters of a value in a message
_MAX_REASON = 200  # of the message of a library
_MAX_TEXT = 4096  # of an option; no system accepts longer paths


def shown(value: object, escape: str = '') -> str:
    """Return a value of a file or of the command line as error and log lines show it, in at most 70 characters.

    A text is in quotes, with control characters, quotes and backslashes escaped; a long one keeps its beginning, its
    end and its length. A container is shown by its type and its number of entries, an exception by its message in one
    line, without quotes, in at most 200 characters.

    Args:
        escape: other characters that are to be escaped.
    """
    if isinstance(value, BaseException):
        return shortened(one_line(str(value)[: 10 * _MAX_REASON]) or type(value).__name__, _MAX_REASON)
    if isinstance(value, int) and value.bit_length() > 10_000:  # Python converts at most 4,300 digits
        return f'a number of about {value.bit_length() * 0.30103:,.0f} digits'
    if isinstance(value, bytes | bytearray | memoryview):
        return f'{len(value):,} bytes'
    if hasattr(value, 'shape') and value.shape != ():
        return f'an array of shape {shortened(str(tuple(value.shape)), 40)}'
    if isinstance(value, tuple) and len(value) < 7 and all(type(number) in (int, float) for number in value):
        return shortened(str(value), MAX_SHOWN)  # an option such as INPUT.MEAN
    if isinstance(value, dict | list | tuple | set | frozenset):
        kind = 'mapping' if isinstance(value, dict) else 'list' if isinstance(value, list | tuple) else 'set'
        return f'a {kind} of {len(value):,} {"entry" if len(value) == 1 else "entries"}'
    if isinstance(value, str) or hasattr(value, '__fspath__'):
        text = str(value)
        return _fitted(text, '"' if "'" in text and '"' not in text else "'", escape)
    return shortened(printable(str(value)[:MAX_SHOWN]), MAX_SHOWN // 2)


def unquoted(text: str) -> str:
    """Return a name as `shown`, but without quotes: in lists, and where a name is the subject of the message."""
    return _fitted(text, '', '')


def _fitted(text: str, quote: str, escape: str) -> str:
    def escaped(part: str) -> str:
        if not quote:
            return printable(part)
        part = part.replace('\\', '\\\\').replace(quote, f'\\{quote}')
        return part if part.isprintable() and not escape else ''.join(map(literal, part))

    def literal(char: str) -> str:  # in quotes, an undecodable byte is the half of a surrogate pair that it is
        return char if _is_plain(char) and char not in escape else _escape(char)

    if len(text) <= MAX_SHOWN and len(whole := f'{quote}{escaped(text)}{quote}') <= MAX_SHOWN:
        return whole
    note = f' ({len(text):,} characters)'
    space = MAX_SHOWN - len(note) - len('...') - 2 * len(quote)
    # Names differ at their ends, and an escape counts with all its characters.
    end = _fitting([escaped(char) for char in reversed(text[-space:])], space // 2)[::-1]
    start = _fitting([escaped(char) for char in text[:space]], space - sum(map(len, end)))
    return f'{quote}{"".join(start)}...{"".join(end)}{quote}{note}'


def _fitting(parts: list[str], width: int) -> list[str]:
    """Return the first parts that have at most `width` characters together."""
    chosen: list[str] = []
    for part in parts:
        width -= len(part)
        if width < 0:
            break
        chosen.append(part)
    return chosen


def shortened(text: str, width: int) -> str:
    """Return a text, or its beginning if it has more than `width` characters."""
    return text if len(text) <= width else f'{text[: width - 3]}...'


def text_fault(text: str) -> str:
    """Return the fault of a text with NUL or bytes that are not UTF-8, or longer than a path; '' if it has none.

    It is a phrase to follow 'NAME is'.
    """
    if '\0' in text:
        return f'{shown(text)}, which contains a NUL character'
    if not is_unicode(text):
        hint = 'rename the file or folder, or name a link to it (ln -s OLD NEW)'
        return f'{shown(text)}, which is not UTF-8 text; {hint}'
    return f'{shown(text)}, but must have at most {_MAX_TEXT:,} characters' if len(text) > _MAX_TEXT else ''


def url_scheme(text: str) -> str:
    """Return the scheme of a URL of object storage or of a web server, in lower case; '' for any other text."""
    scheme, separator, _ = text.strip().partition('://')
    return scheme.lower() if separator and scheme.lower() in STORAGE_SCHEMES else ''


def url_fault(path: str) -> str:
    """Return the fault of a path that is a URL, a phrase to follow 'NAME is'; '' for a local path.

    A URL of object storage or of a web server has none, unless it may hold a credential, which is not shown.
    `remote:/x`, which tools such as rclone and scp read, is a URL, too; `C:/x` is none, since a drive has one letter.
    """
    if scheme := url_scheme(path):
        return _address_fault(scheme, path.strip().partition('://')[2])
    scheme, colon, rest = path.strip().partition(':')
    is_scheme = len(scheme) > 1 and scheme.isascii() and all(char.isalnum() or char in '+.-_@' for char in scheme)
    if not (colon and is_scheme and (rest.startswith('/') or scheme.lower() in _SCHEMES)):
        return ''
    hint = f'; copy the files to this machine or mount them, or use {", ".join(STORAGE_SCHEMES[:3])} or https'
    if scheme.lower() == 'file' and rest.startswith('/'):
        hint = f'; type /{rest.removeprefix("//localhost").lstrip("/")}'
    elif scheme.lower() in STORAGE_SCHEMES:
        hint = f'; type {scheme.lower()}://{unquoted(rest.lstrip("/"))}'
    return f'{shown(path)}, a URL, but must be a local path such as ./data or /mnt/data{hint}'


def _address_fault(scheme: str, address: str) -> str:
    """Return the fault of what follows `scheme://`: no bucket, or a part that holds credentials elsewhere."""
    host, _, path = address.partition('/')
    user, at, _ = host.rpartition('@')
    if (at and (':' in user or not scheme.startswith('abfs'))) or '?' in address:
        return (
            f'a URL {scheme}://... with a name, a password or a query, which would be written into files; type it '
            'without them, and set the credentials as for other programs (see docs/storage.md)'
        )
    if not host or '..' in path.split('/'):
        return f'{shown(f"{scheme}://{address}")}, which names no bucket, object or folder'
    return ''
