"""Random JSON schemas whose texts are short: everything in them is bounded."""

import random


def schema(seed: int) -> dict:
    """One schema, an object or array at its top."""
    rng = random.Random(seed)
    return _array(rng, 2) if rng.random() < 0.2 else _object(rng, 2)


def _any(rng: random.Random, depth: int) -> dict:
    leaves = [_string, _integer, _choice, _constant, _plain, _pattern]
    inner = [_object, _array, _either] if depth > 0 else []
    return rng.choice(leaves + inner)(rng, depth)


def _string(rng, depth):
    low = rng.randint(0, 2)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 4)}


def _integer(rng, depth):
    low = rng.randint(-200, 200)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 300)}


def _choice(rng, depth):
    return {"enum": rng.sample(["a", "bb", 3, True, None, "name", 'q"', "\u00e9\n", -1.5], 3)}


def _constant(rng, depth):
    return {"const": rng.choice(["fixed", 17, [1, 2], {"k": "v"}])}


def _plain(rng, depth):
    return {"type": rng.choice(["boolean", "null"])}


def _pattern(rng, depth):
    return {"type": "string", "pattern": rng.choice(["^[a-c]{1,3}$", "^(x|yy)-[0-9]{2}$"])}


def _either(rng, depth):
    return {"anyOf": [_any(rng, depth - 1), _any(rng, 0)]}


def _array(rng, depth):
    low = rng.randint(0, 1)
    bounds = {"minItems": low, "maxItems": low + rng.randint(0, 2)}
    return {"type": "array", "items": _any(rng, depth - 1), **bounds}


def _object(rng, depth):
    names = rng.sample(
        ["name", "age", "tags", "is_ok", "x y", "\u00fc", "value"], rng.randint(1, 3)
    )
    required = [name for name in names if rng.random() < 0.7]
    return {
        "type": "object",
        "properties": {name: _any(rng, depth - 1) for name in names},
        "required": required,
        "additionalProperties": False,
    }
