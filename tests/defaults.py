"""The defaults of all options as a run sees them: with a value wherever the default is 'auto'."""

from lib.builders.preprocessing import resolve_preprocessing
from lib.config.defaults import KEYS
from lib.config.yaml_text import as_node, as_values

DEFAULTS = as_values(resolve_preprocessing(as_node({name: key.default for name, key in KEYS.items()})))
