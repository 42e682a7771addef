"""Child process of test_devices: decodes on meshes of eight fake CPU devices.

    python -m tests.contract.devices METHODS ADDRESS PROCESSES PROCESS MESH...

Prints, as JSON, for every mesh the method names whose tokens differ from those of one device. The
devices belong to one process, or to several that meet at ADDRESS.
"""

import json
import sys

import jax

from jaxdecode import api
from jaxdecode.core.registry import METHODS
from jaxdecode.dist import mesh as meshes
from tests import toys

NEW = 10
PROMPTS = [[3, 1, 4, 1, 5, 3, 1], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9], [1, 2, 1, 2]]


def on(lm, mesh):
    """The same model split over a mesh, one device if None."""
    if mesh is None:
        return lm
    return api.from_params(lm.config, lm.params, name=lm.name, mesh=mesh)


def tokens(name, mesh):
    fills = METHODS[name].fills
    lm = toys.filler(name) if fills else toys.model()
    given = {
        need: on(value, mesh) if isinstance(value, api.LanguageModel) else value
        for need, value in toys.helpers(name, lm).items()
    }
    asked = {"max_new_tokens": NEW, **toys.drawn(name), **given}
    if fills:
        asked |= toys.fitting(name)
    return api.generate(on(lm, mesh), PROMPTS, method=name, **asked).tokens


def main():
    names, different = sys.argv[1].split(","), {}
    address, processes, process, *texts = sys.argv[2:]
    if int(processes) > 1:
        jax.distributed.initialize(address, int(processes), int(process))
    assert len(jax.devices()) == 8
    alone = {name: tokens(name, None) for name in names}
    for text in texts:
        mesh = meshes.make(text)
        different[text] = [name for name in names if tokens(name, mesh) != alone[name]]
    print(json.dumps(different))


if __name__ == "__main__":
    main()
