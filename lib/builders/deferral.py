"""From which epoch on something deferred holds."""

_USUAL_SHARE = 0.8  # of the run: 160 of 200 epochs (Cao et al., NeurIPS 2019)


def deferred_epoch(epoch: int, max_epoch: int) -> int:
    """Return the first epoch (from 0): the one that a key gives, or the literature's where it is negative."""
    return epoch if epoch >= 0 else round(_USUAL_SHARE * max_epoch)
