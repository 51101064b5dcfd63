"""The config tree: options (keys, defaults), where values come from (load, options), and checks (check)."""
