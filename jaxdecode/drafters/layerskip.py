"""Early exit: the target's own first layers, its final norm and its head write the draft.

Nothing is trained here and no second model is loaded; a model trained to be read early (recipe
`layerskip`), or one whose last layers change little, drafts well, any other badly. The keys and
values of the first layers are those of the target, so the drafter reads the target's cache as it
is.

Exactness: L0 under sample_match; drafts are drawn with the noise of their positions.
Cost: per draft token exit_layer layers and the head over a block of num_draft rows.
Source: arXiv:2404.16710 section 4.3; differs: drafts and target share noise in place of the
accept-reject rule, and the target forwards the drafts from its first layer on. Starting from the
exit's hidden states would save no reading of weights, since the last draft token has to pass the
first layers in any case.
"""

import dataclasses

from jaxdecode import checks
from jaxdecode.core.protocols import Drafter, Models
from jaxdecode.drafters import none
from jaxdecode.errors import InputError
from jaxdecode.trees import unroll


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        num_draft: draft tokens per step.
        exit_layer: layers that draft; None takes a third of the target's.
    """

    num_draft: int = 4
    exit_layer: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range, by name."""
        checks.integer("num_draft", self.num_draft, low=1)
        if self.exit_layer is not None:
            checks.integer("exit_layer", self.exit_layer, low=1)


def make(config: Config, models: Models) -> Drafter:
    """The drafter; it has no state."""
    target, num_layers = models.target.target, models.target.config.num_layers
    last = config.exit_layer or max(1, num_layers // 3)
    if last > num_layers:
        raise InputError(
            f"exit_layer={last} is out of range; the target has {num_layers} layers, so it must "
            f"be from 1 to {num_layers}."
        )
    embed, layers, norm = unroll.parts(target)

    def propose(weights, state, request, canvas, view):
        params = weights.target
        cached = (view[0][:last], view[1][:last])

        def hidden_of(tokens):
            block = unroll.program(canvas, tokens.shape[1])
            x, _ = layers(params, embed(params, tokens), block, cached, 0, last)
            return norm(params, x)

        proposal = unroll.propose(
            request,
            canvas,
            num_draft=config.num_draft,
            hidden_of=hidden_of,
            logits_of=lambda hidden: target.logits(params, hidden),
        )
        return proposal, state

    widths = (1, config.num_draft + 1)
    return none.stateless(propose, widths=widths, max_depth=config.num_draft)
