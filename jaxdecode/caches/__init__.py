"""Where keys and values live between steps; one file per policy."""
