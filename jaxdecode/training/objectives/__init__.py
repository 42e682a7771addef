"""What is minimised, one file per objective: a `Config`, and `make(config, models)`."""
