"""The tree of options: what there is (defaults), where values come from (load), how they are typed in (options)."""
