"""The target learns to fill masked tokens of a block, from that block and the clean ones before it.

Loss: that of `mdlm`, where every block of a text has its own time (arXiv:2503.09573). All blocks
are computed in one pass over the text with noise, followed by the text as it is (`core/masks.py`,
rule "noisy_and_clean"): b n + n^2 of the 4 n^2 pairs of places see each other. With `times`
narrower than from 0 to 1, rates of masking are those whose gradients vary less; held-out texts are
measured over all times. With block=1, `shifted` and all of it masked the loss is the negative
log-likelihood of autoregressive weights.

Differs from the paper: the range of times is set by hand, not searched for while training.
"""

import dataclasses

from jaxdecode import checks
from jaxdecode.core.protocols import Models
from jaxdecode.training import denoising
from jaxdecode.training.objective import Objective
from jaxdecode.training.objectives import mdlm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(mdlm.Config):
    """Settings: those of `mdlm`, and one more.

    Attributes:
        block: positions per block, counted from the beginning of a text.
    """

    block: int = 16

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        super().__post_init__()
        checks.integer("block", self.block, low=1)


def make(config: Config, models: Models) -> Objective:
    """The objective of all parameters of the target.

    Raises:
        InputError: there is no mask token.
    """
    asked = denoising.setting(models.target, config.mask_token, config.shifted, config.block)
    return mdlm.objective(config, asked)
