"""Training objectives."""

from resgen.losses.mixture import MixtureLoss, mixture_loss

__all__ = ["MixtureLoss", "mixture_loss"]
