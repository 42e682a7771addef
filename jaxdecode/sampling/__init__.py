"""From scores to tokens: the warp, seeded noise, stop conditions."""
